# One model, its optimiser's state and its data, resident in this process: what Python drives.

"""
    Session

One model, its optimiser's state and its data. See [`open_session`](@ref).
"""
mutable struct Session{T <: AbstractFloat, V <: AbstractVector{T}}
    const model::Model
    const solver::Solver
    const training::Training
    const device::Device
    const order::Vector{Int}   # of the caller's arrays in the model's order
    const is_weight::V         # 1 for the entries of theta that are weights, 0 for biases
    theta::V
    optimizer::Any             # Optimisers' tree, a single leaf
    count::Int                 # optimiser steps taken
    data::Any                  # (x, target) on the device and weight on the host, or nothing
    const pool::Pool           # of the arrays that a batch works in
end

"""
    open_session(; n_features, n_outputs, n_state, hidden_layer_sizes, activation, stability,
        contraction, horizon, solver, abstol, reltol, ode_abstol, ode_reltol, max_steps, adjoint,
        loss, learning_rate, alpha, jacobian_penalty, train_encoder, device, names, arrays,
        init_penalty = 0.0, init = "cell", layers = nothing, opt_count = 0, opt_m = nothing,
        opt_v = nothing) -> Session

Open a session on copies of `arrays`, in whose element type it works.

# Keywords

  - `names`, `arrays`: the parameters: `encoder.weight` (n_state, n_features), `encoder.bias`
    (n_state,), `cell.0.weight` (n_out, n_in), ..., `decoder.bias` (n_outputs,). Without `n_state`
    encoder and decoder are absent, and the state is the input itself.
  - `hidden_layer_sizes`: the cell's hidden widths; `activation`: `identity`, `logistic`, `tanh` or
    `relu`; `stability`: `none`, `jacobian`, `monotone` or `contractive`, then with the Lipschitz
    bound `contraction`.
  - `layers`: encoder, cell, decoder and first guess as [`LayeredNetwork`](@ref)s, `n_state` being the
    number of values of the state; what is `nothing` is the dense one. Or `nothing`: all of them are.
  - `init`: u(0) where `layers` do not say it: `cell`, f(0, h), or `zero`. `init_penalty`: of a first
    guess's distance from the states.
  - `horizon`: final time of the neural ODE, or `nothing` for its steady state.
  - `solver`: `tsit5`, `anderson`, `broyden`, `newton`, `fixed_point` or, for the monotone cell,
    `peaceman_rachford`; or one of [`ODE_METHODS`](@ref), once its package is loaded. `abstol` and
    `reltol` end the search, `ode_abstol` and `ode_reltol` control the ODE's steps, `max_steps`
    bounds them.
  - `adjoint`: `implicit`, `jfb`, or, with the package's own solvers but `newton`, `unrolled`.
  - `loss`: `squared_error` or `log_loss`; `alpha`: strength of the L2 penalty
    on the weights; `jacobian_penalty`: of the penalty of `stability = "jacobian"`.
  - `learning_rate`: Adam's; `train_encoder`: false keeps the encoder as it is.
  - `device`: `auto`, `cpu` or `cuda`.
  - `opt_count`, `opt_m`, `opt_v`: what [`optimizer_state`](@ref) returned, to go on from there.

# Example

```julia
using PyDEQ: equilibrium, get_arrays, load_data!, loss_and_grad, open_session, optimizer_state,
    restore!, snapshot, train_batch!, trajectory
session = open_session(;
    n_features = 1, n_outputs = 1, n_state = nothing, hidden_layer_sizes = Int[],
    activation = "tanh", stability = "none", contraction = 0.9, horizon = nothing,
    solver = "anderson", abstol = 1.0e-8, reltol = 1.0e-8, ode_abstol = 1.0e-8, ode_reltol = 1.0e-8,
    max_steps = 100, adjoint = "implicit", loss = "squared_error", learning_rate = 0.1, alpha = 0.0,
    jacobian_penalty = 0.0, train_encoder = true, device = "cpu",
    names = ["cell.0.weight", "cell.0.bias"], arrays = [[0.5;;], [0.25]],
)
x = [1.0 2.0]                             # one sample a column
found = equilibrium(session, x)           # z = (z + x) / 2 + 1 / 4
found.state ≈ x .+ 0.5 && all(found.converged)
probe = ones(1)                           # of the Jacobian penalty, which there is none of here
loss, gradient = loss_and_grad(session, x, 2x, ones(2), probe)
size(trajectory(session, x, 3)) == (1, 2, 4)
load_data!(session, x, 2x, ones(2))
before = snapshot(session)
report = train_batch!(session, [1, 2], probe)
report.loss ≈ loss && report.n_failed == 0
count, m, v = optimizer_state(session)
restore!(session, before)
get_arrays(session) == [[0.5;;], [0.25]]
```
"""
open_session(; settings...) = open_session(Dict{Symbol, Any}(settings))

# One compilation for all settings: each has its type, and nothing is converted.
function open_session(given::Dict{Symbol, Any})
    settings = merge(OPTIONAL_SETTINGS, given)
    model, solver, training = model_of(settings), solver_of(settings), training_of(settings)
    check(model, solver, training)
    place = find_device(settings[:device]::String)
    check_place(model, place)
    order = order_of(model, settings[:names]::Vector{String})
    arrays = settings[:arrays]::Vector
    theta = flatten(model, order, arrays, eltype(first(arrays)), place)
    session = Session(
        model, solver, training, place, order, weight_mask(model, theta), theta, nothing,
        settings[:opt_count]::Int, nothing, Pool(),
    )
    session.optimizer = optimizer_tree(session, settings[:opt_m], settings[:opt_v])
    return session
end

"""Return where in `names` the model's parameters are."""
function order_of(model::Model, names::Vector{String})
    expected = parameter_names(model)
    order = indexin(expected, names)
    if length(names) != length(expected) || any(isnothing, order)
        throw(
            ArgumentError(
                "The model has the parameters $(join(expected, ", ")); found $(join(names, ", "))."
            ),
        )
    end
    return Vector{Int}(order)
end

"""Return the caller's arrays as one vector of element type T on the device."""
function flatten(model::Model, order, arrays::Vector, ::Type{T}, device::Device) where {T}
    names, shapes = parameter_names(model), parameter_shapes(model)
    flat = Vector{T}(undef, sum(prod, shapes; init = 0))
    at = 1
    for (k, i) in enumerate(order)
        array = arrays[i]
        if size(array) != shapes[k]
            throw(DimensionMismatch("$(names[k]) has the shape $(shapes[k]); found $(size(array))."))
        end
        copyto!(flat, at, array, 1, length(array))
        at += length(array)
    end
    return to_device(device, flat)
end

"""Write a vector like theta to arrays in the caller's order."""
function unflatten!(arrays::Vector, session::Session, flat)
    host = convert(Array, flat)
    at = 1
    for i in session.order
        n = length(arrays[i])
        copyto!(arrays[i], 1, host, at, n)
        at += n
    end
    return arrays
end

function unflatten(session::Session{T}, flat) where {T}
    arrays = Vector{Any}(undef, length(session.order))
    for (i, shape) in zip(session.order, parameter_shapes(session.model))
        arrays[i] = Array{T}(undef, shape)
    end
    return unflatten!(arrays, session, flat)
end

function weight_mask(model::Model, theta)
    mask = map(parameter_names(model), parameter_shapes(model)) do name, shape
        fill(endswith(name, ".weight"), prod(shape))  # not the biases, nor the skew of a monotone cell
    end
    return copyto!(similar(theta), reduce(vcat, mask))
end

function optimizer_tree(session::Session{T}, m, v) where {T}
    beta = (0.9, 0.999)
    leaf = Optimisers.setup(Adam(session.training.learning_rate, beta, 1.0e-8), session.theta)
    if m !== nothing && v !== nothing
        (; model, order, device) = session
        # The powers of beta by the same multiplications as in training, for the same bits.
        powers = T.(beta)
        for _ in 1:(session.count)
            powers = powers .* T.(beta)
        end
        leaf.state = (flatten(model, order, m, T, device), flatten(model, order, v, T, device), powers)
    end
    return leaf
end

"""
    get_arrays(session) -> Vector

Return copies of the parameters, in the order of the names that the session was opened with.
"""
get_arrays(session::Session) = unflatten(session, session.theta)

"""
    optimizer_state(session) -> (count, m, v)

Return the number of steps taken and both moments, as arrays in the order of the names.
"""
function optimizer_state(session::Session)
    m, v, _ = session.optimizer.state
    return (session.count, unflatten(session, m), unflatten(session, v))
end

"""
    snapshot(session)

Return a copy of the weights and of the optimiser's state, for [`restore!`](@ref).
"""
function snapshot(session::Session)
    return (copy(session.theta), deepcopy(session.optimizer), session.count)
end

"""
    restore!(session, saved)

Put the session back to where [`snapshot`](@ref) saw it.
"""
function restore!(session::Session, saved)
    theta, optimizer, count = saved
    session.theta = copy(theta)
    session.optimizer = deepcopy(optimizer)
    session.count = count
    return nothing
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
    (; model, solver, theta) = session
    encoder, cell, decoder, init = parts(model, theta)
    h = model.encoder(encoder, to_device(session.device, convert(Array{T}, x)))
    flat = acting_cell(model, cell)
    pool = rewind!(session.pool)
    outcome = find_states(model, solver, flat, h, start_of(model, flat, init, h), each, pool)
    return (
        state = Array(outcome.u), output = Array(model.decoder(decoder, outcome.u)),
        residual = residual(outcome), outcome.n_evals, outcome.converged,
    )
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
