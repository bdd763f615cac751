"""
Deep equilibrium models: prediction by the steady state of a neural ODE, trained through it.

With h the input and f the cell, a Lux layer of u + h, the state is the steady state of
du/dt = f(u, h) - u from u(0) = f(0, h): [`DeepEquilibrium`](@ref) is that as a Lux layer. The
equilibrium is a `SteadyStateProblem` (SteadyStateDiffEq), its gradient a `SteadyStateAdjoint`
(SciMLSensitivity). Samples are columns: an array is (width, n).

What Python drives is not exported: [`open_session`](@ref), and what takes the session that it
returns. There, too, a finite horizon is a `NeuralODE` (DiffEqFlux).
"""
module PyDEQ

using ChainRulesCore: ChainRulesCore, AbstractZero, NoTangent, unthunk, @ignore_derivatives
using DiffEqFlux: DiffEqFlux, NeuralODE
using LinearAlgebra: I, dot, mul!, norm, rmul!
using Lux: Lux, Dense
using LuxCore: LuxCore, AbstractLuxContainerLayer, AbstractLuxLayer, AbstractLuxWrapperLayer
using NNlib: DenseConvDims, conv, ∇conv_data, ∇conv_filter
using Optimisers: Optimisers, Adam
using OrdinaryDiffEqTsit5: OrdinaryDiffEqTsit5, Tsit5
using PrecompileTools: @compile_workload, @setup_workload
using Random: AbstractRNG
using SciMLBase: SciMLBase, DiscreteCallback, ODEFunction, ReturnCode, SteadyStateProblem,
    solve, successful_retcode, terminate!
using SciMLLogging: None
using SciMLSensitivity: SciMLSensitivity, SteadyStateAdjoint, ZygoteVJP
using SteadyStateDiffEq: SteadyStateDiffEq, DynamicSS
using Zygote: Zygote

export Batched, DeepEquilibrium, MonotoneCell, contractive

include("flat.jl")
include("pool.jl")
include("network.jl")
include("norms.jl")
include("model.jl")
include("cell.jl")
include("krylov.jl")
include("search.jl")
include("solvers/plain.jl")
include("solvers/anderson.jl")
include("solvers/broyden.jl")
include("solvers/newton.jl")
include("solvers/tsit5.jl")
include("dynamics.jl")
include("adjoint.jl")
include("layers.jl")
include("layered.jl")
include("bounds.jl")
include("unrolled.jl")
include("batched.jl")
include("layer.jl")
include("cells.jl")
include("horizon.jl")
include("loss.jl")
include("device.jl")
include("description.jl")
include("session.jl")
include("training.jl")
include("pass.jl")
include("adam.jl")
include("precompile.jl")

end
