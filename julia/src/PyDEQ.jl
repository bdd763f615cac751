"""
Deep equilibrium models: prediction by the steady state of a neural ODE, trained through it.

With h = E x the encoded input and f the cell, an MLP of u + h, the state is the steady state of
du/dt = f(u, h) - u from u(0) = f(0, h), or u(T) for a finite horizon T, and the output is D u.
The equilibrium is a `SteadyStateProblem` (SteadyStateDiffEq), its gradient a `SteadyStateAdjoint`
(SciMLSensitivity), the finite horizon a `NeuralODE` (DiffEqFlux), the layers are Lux's.

Samples are columns: an array is (width, n). Start with [`open_session`](@ref).
"""
module PyDEQ

using ChainRulesCore: ChainRulesCore, AbstractZero, NoTangent, unthunk, @ignore_derivatives
using DiffEqFlux: DiffEqFlux, NeuralODE
using LinearAlgebra: I, mul!, norm
using LinearSolve: LinearSolveFunction
using Lux: Lux, Dense
using LuxCore: LuxCore, AbstractLuxLayer
using Optimisers: Optimisers, Adam
using OrdinaryDiffEqTsit5: OrdinaryDiffEqTsit5, Tsit5
using PrecompileTools: @compile_workload, @setup_workload
using SciMLBase: SciMLBase, DiscreteCallback, ODEFunction, ReturnCode, SteadyStateProblem, get_du,
    solve, successful_retcode, terminate!
using SciMLLogging: None
using SciMLSensitivity: SciMLSensitivity, SteadyStateAdjoint, ZygoteVJP
using SteadyStateDiffEq: SteadyStateDiffEq, DynamicSS
using Zygote: Zygote

export Session, equilibrium, get_arrays, has_cuda, load_data!, loss_and_grad, open_session,
    optimizer_state, restore!, snapshot, train_batch!, trajectory, versions

include("flat.jl")
include("network.jl")
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
include("unrolled.jl")
include("horizon.jl")
include("loss.jl")
include("device.jl")
include("session.jl")
include("training.jl")
include("precompile.jl")

end
