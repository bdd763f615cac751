"""
Deep equilibrium models: prediction by the steady state of a neural ODE, trained through it.

With h the input and f the cell, a Lux layer of u + h, the state is the steady state of
du/dt = f(u, h) - u from u(0) = f(0, h): [`DeepEquilibrium`](@ref) is that as a Lux layer. The
equilibrium is a `SteadyStateProblem` (SteadyStateDiffEq), its gradient a `SteadyStateAdjoint`
(SciMLSensitivity). Samples are columns: an array is (width, n).

The package loads little. What SciML and Lux do comes with extensions, which their packages load.

What Python drives is not exported: a [`Session`](@ref), opened by [`open_session`](@ref). There, too, a
finite horizon is a `NeuralODE` (DiffEqFlux).
"""
module PyDEQ

using ChainRulesCore: ChainRulesCore, AbstractZero, HasReverseMode, NoTangent, RuleConfig,
    rrule_via_ad, unthunk, @ignore_derivatives
using LinearAlgebra: BLAS, I, dot, mul!, norm, rmul!
using LuxCore: LuxCore, AbstractLuxContainerLayer, AbstractLuxLayer, AbstractLuxWrapperLayer
using NNlib: relu, sigmoid, sigmoid_fast, tanh_fast
using Optimisers: Optimisers, Adam
using PrecompileTools: @compile_workload, @setup_workload
using Random: AbstractRNG

export Batched, DeepEquilibrium, MonotoneCell, contractive

include("flat.jl")
include("pool.jl")
include("network.jl")
include("norms.jl")
include("loss.jl")
include("model.jl")
include("cell.jl")
include("krylov.jl")
include("search.jl")
include("solvers/plain.jl")
include("solvers/anderson.jl")
include("solvers/broyden.jl")
include("solvers/newton.jl")
include("solvers/tsit5.jl")
include("adjoint.jl")
include("images.jl")
include("convolution.jl")
include("layers.jl")
include("pooling.jl")
include("layered.jl")
include("bounds.jl")
include("monotone.jl")
include("scales.jl")
include("masked.jl")
include("batched.jl")
include("layer.jl")
include("cells.jl")
include("device.jl")
include("session.jl")
include("threads.jl")
include("training.jl")
include("penalties.jl")
include("pass.jl")
include("adam.jl")
include("description.jl")
include("python.jl")
include("precompile.jl")

end
