# One model, its optimiser's state and its data, resident in this process: what trains and predicts.

"""What is minimised and how; the fields are those of Python's `pydeq.model.spec.OptimizerSpec`."""
struct Training
    loss::Symbol
    learning_rate::Float64
    alpha::Float64
    jacobian_penalty::Float64
    init_penalty::Float64
    train_encoder::Bool
end

"""
    Session(model, solver, training, theta, device = CPUDevice())

A [`Model`](@ref) whose parameters are the vector `theta`, in whose element type it works, with the
[`Solver`](@ref) that finds its states and what it is trained by: Adam, from its start. On the CPU the
vector is the session's own, which training writes to.

# Example

```julia
using PyDEQ: Model, Session, Solver, Training, equilibrium, load_data!, loss_and_grad, train_batch!,
    trajectory
# Neither encoder nor decoder, and one layer: f(u, h) = (u + h) / 2 + 1 / 4.
model = Model(1, 1, nothing, Int[], :tanh, :none, 0.9, nothing)
solver = Solver(:anderson, 1.0e-8, 1.0e-8, 100, :implicit)
training = Training(:squared_error, 0.1, 0.0, 0.0, 0.0, true)
session = Session(model, solver, training, [0.5, 0.25])
x = [1.0 2.0]                             # one sample a column
found = equilibrium(session, x)           # z = (z + x) / 2 + 1 / 4
found.state ≈ x .+ 0.5 && all(found.converged)
probe = ones(1)                           # of the Jacobian penalty, which there is none of here
loss, gradient = loss_and_grad(session, x, 2x, ones(2), probe)
size(trajectory(session, x, 3)) == (1, 2, 4)
load_data!(session, x, 2x, ones(2))
report = train_batch!(session, [1, 2], probe)
report.loss ≈ loss && report.n_failed == 0
session.theta ≈ [0.5, 0.25] .- 0.1 .* sign.(gradient)
```
"""
mutable struct Session{T <: AbstractFloat, V <: AbstractVector{T}, P <: AbstractPool}
    const model::Model
    const solver::Solver
    const training::Training
    const device::Device
    const is_weight::V   # 1 for the entries of theta that are weights, 0 for biases
    theta::V
    optimizer::Any       # Optimisers' tree, a single leaf
    count::Int           # optimiser steps taken
    data::Any            # (x, target) on the device and weight on the host, or nothing
    const pool::P        # of the arrays that a batch works in
    const pools::Vector{P}  # the same of a thread or a part: see `pools_of`
    n_threads::Int
end

function Session(
        model::Model, solver::Solver, training::Training, theta::Vector, device::Device = CPUDevice(),
    )
    check(model, solver, training)
    check_place(model, device)
    theta = to_device(device, theta)
    optimizer = Optimisers.setup(Adam(training.learning_rate, BETAS, 1.0e-8), theta)
    return Session(
        model, solver, training, device, weight_mask(model, theta), theta, optimizer, 0, nothing,
        pool_like(theta), [pool_like(theta)], threads_for(model, theta),
    )
end

const BETAS = (0.9, 0.999)

function check(model::Model, solver::Solver, training::Training)
    check_choice("solver", solver.name, SOLVERS)
    check_choice("adjoint", solver.adjoint, ADJOINTS)
    check_choice("loss", training.loss, LOSSES)
    if model.horizon === nothing && solver.adjoint === :unrolled && !(solver.name in UNROLLED)
        throw(
            ArgumentError(
                "The Julia engine has adjoint=\"unrolled\" for $(join(UNROLLED, ", ")). Take one of " *
                    "these, or adjoint=\"implicit\" or \"jfb\"; found $(solver.name).",
            ),
        )
    end
    # Said now, if a package is not there.
    solver.name in ODE_METHODS && ode_algorithm(Val(solver.name))
    if model.horizon !== nothing
        check_loaded(integrate, "a finite horizon", "DiffEqFlux, OrdinaryDiffEqTsit5, Zygote")
        check_loaded(pass_by_zygote, "a finite horizon", "DiffEqFlux, OrdinaryDiffEqTsit5, Zygote")
    elseif solver.adjoint === :unrolled
        check_loaded(pass_by_zygote, "adjoint=\"unrolled\"", "Zygote")
    end
    if solver.name === :peaceman_rachford && model.stability !== :monotone
        throw(
            ArgumentError(
                "solver=\"peaceman_rachford\" needs stability=\"monotone\"; found " *
                    "$(repr(string(model.stability))).",
            ),
        )
    end
    return nothing
end

"""Layers work on the host alone."""
function check_place(model::Model, place::Device)
    is_layered = any(part -> part isa LayeredNetwork, (model.encoder, model.cell, model.decoder, model.init))
    is_layered && !(place isa CPUDevice) || return nothing
    throw(
        ArgumentError(
            "On a GPU the Julia engine does not have layers. Use device=\"cpu\", or engine=\"jax\".",
        ),
    )
end

function weight_mask(model::Model, theta)
    mask = map(parameter_names(model), parameter_shapes(model)) do name, shape
        fill(endswith(name, ".weight"), prod(shape))  # not the biases, nor the skew of a monotone cell
    end
    return copyto!(similar(theta), Vector{eltype(theta)}(reduce(vcat, mask)))
end

"""
    load_data!(session, x, target, weight)

Make the training data resident: `x` (n_features, n), of any real element type, which batches alone
are converted from; `target` (n_outputs, n) or, for `log_loss`, (n,), classes from 1; `weight` (n,),
not negative. An `x` that is an `Array` is not copied on the CPU: it must stay as it is.
"""
function load_data!(session::Session{T}, x, target, weight) where {T}
    session.data = (
        to_device(session.device, x), to_device(session.device, as_target(T, target)),
        Array{T}(weight),
    )
    return nothing
end

as_target(::Type{T}, values::AbstractMatrix) where {T} = Array{T}(values)
as_target(::Type, classes::AbstractVector) = Array{Int32}(classes)

"""
    equilibrium(session, x; each = false) -> (; state, output, residual, n_evals, converged)

Return the states (width, n) of the samples `x` (n_features, n), the raw outputs (n_outputs, n),
the residuals (n,), the evaluations and whether each converged; lack of convergence is no error.

With a finite horizon, or one of [`ODE_METHODS`](@ref), the samples are integrated together and share
their steps, so that an answer depends, within the tolerances, on its batch; with `each` every sample
is integrated by itself.
"""
function equilibrium(session::Session{T}, x; each::Bool = false) where {T}
    x = to_device(session.device, convert(Array{T}, x))
    outcome, output = outcome_of(session, acting_parts(session), x, each, rewind!(session.pool))
    return (
        state = Array(outcome.u), output = Array(output), residual = residual(outcome),
        outcome.n_evals, outcome.converged,
    )
end

"""The parameters of encoder, cell, decoder and first guess, those of the cell as they act."""
function acting_parts((; model, theta)::Session)
    encoder, cell, decoder, init = parts(model, theta)
    return encoder, acting_cell(model, cell), decoder, init
end

"""Return the outcome and the raw outputs of the samples `x`, both in arrays of the pool's or new ones."""
function outcome_of((; model, solver)::Session, (encoder, cell, decoder, init), x, each, pool)
    h = model.encoder(encoder, x)
    outcome = find_states(model, solver, cell, h, start_of(model, cell, init, h), each, pool)
    return outcome, model.decoder(decoder, outcome.u)
end

function find_states(model::Model, solver::Solver, flat, h, u0, each, pool = nothing)
    n = size(h, 2)
    shares_steps = model.horizon !== nothing || solver.name in ODE_METHODS
    is_alone = !each || n <= 1 || !shares_steps
    if !is_alone
        start(j) = u0 === nothing ? nothing : u0[:, j:j]
        return together([find_states(model, solver, flat, h[:, j:j], start(j), false) for j in 1:n])
    end
    model.horizon === nothing && return search(solver, model.cell, flat, h, u0, pool)
    found = Ref{Outcome}()
    integrate(model, solver, flat, h, u0, found)
    return found[]
end

function trajectory(session::Session{T}, x, depth::Integer) where {T}
    x = to_device(session.device, convert(Array{T}, x))
    return Array(trajectory(session.model, session.theta, x, Int(depth)))
end

"""
    jvp(session, x, u, tangent) -> (width, n)

Return the products of the cell's derivative df/du, at the states `u` (width, n) of the samples `x`, with
one tangent (width, n) each.
"""
function jvp(session::Session{T}, x, u, tangent) where {T}
    (; model, theta, device) = session
    encoder, cell, _, _ = parts(model, theta)
    x, u, tangent = (to_device(device, convert(Array{T}, a)) for a in (x, u, tangent))
    h, flat, pool = model.encoder(encoder, x), acting_cell(model, cell), rewind!(session.pool)
    place = is_on_host(flat) ? on_host(model.cell, flat, h, pool) : Cell(model.cell, flat, h, pool)
    return Array(apply!(similar(u), linearize(place, u, h, pool), tangent, false))
end
