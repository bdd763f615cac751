"""
The steady state by SciML: any algorithm for a `SteadyStateProblem`, and its `SteadyStateAdjoint`.
"""
module PyDEQSteadyStateExt

using ChainRulesCore: ChainRulesCore, NoTangent, unthunk, @ignore_derivatives
using PyDEQ: DeepEquilibrium, Outcome, PyDEQ, Solver, algorithm, dense_network, evaluate!, finite_columns,
    flat_parameters, inject, is_on_host, is_steady, never_unstable, ode_algorithm, ode_tolerances, on_host,
    pull_state, search_settings
using SciMLBase: DiscreteCallback, ODEFunction, SciMLBase, SteadyStateProblem, solve, terminate!
using SciMLLogging: None
using SciMLSensitivity: SteadyStateAdjoint, ZygoteVJP
using SteadyStateDiffEq: DynamicSS

include("dynamics.jl")
include("layer.jl")

end
