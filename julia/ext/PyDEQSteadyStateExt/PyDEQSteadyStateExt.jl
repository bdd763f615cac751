"""
The steady state by SciML: any algorithm for a `SteadyStateProblem`, and its `SteadyStateAdjoint`.
"""
module PyDEQSteadyStateExt

using ChainRulesCore: @ignore_derivatives
using PyDEQ: DeepEquilibrium, Network, Outcome, PyDEQ, Solver, algorithm, cut, evaluate!,
    finite_columns, glue, inject, is_steady, never_unstable, ode_algorithm, ode_tolerances
using SciMLBase: DiscreteCallback, ODEFunction, SciMLBase, SteadyStateProblem, solve, terminate!
using SciMLLogging: None
using SciMLSensitivity: SteadyStateAdjoint, ZygoteVJP
using SteadyStateDiffEq: DynamicSS

include("dynamics.jl")
include("layer.jl")

end
