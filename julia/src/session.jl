# One model, its optimiser's state and its data, resident in this process: what Python drives.

"""What is minimised and how; the fields are those of Python's `pydeq.model.spec.OptimizerSpec`."""
struct Training
    loss::Symbol
    learning_rate::Float64
    alpha::Float64
    jacobian_penalty::Float64
    train_encoder::Bool
end

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
        loss, learning_rate, alpha, jacobian_penalty, train_encoder, device, names, arrays, layers = nothing, opt_count = 0, opt_m = nothing, opt_v = nothing) -> Session

Open a session on copies of `arrays`, in whose element type it works.

# Keywords

  - `names`, `arrays`: the parameters: `encoder.weight` (n_state, n_features), `encoder.bias`
    (n_state,), `cell.0.weight` (n_out, n_in), ..., `decoder.bias` (n_outputs,). Without `n_state`
    encoder and decoder are absent, and the state is the input itself.
  - `hidden_layer_sizes`: the cell's hidden widths; `activation`: `identity`, `logistic`, `tanh` or
    `relu`; `stability`: `none`, `jacobian`, `monotone` or `contractive`, then with the Lipschitz
    bound `contraction`.
  - `layers`: encoder, cell and decoder as [`LayeredNetwork`](@ref)s, `n_state` being the number of
    values of the state; a cell that is `nothing` is the dense one. Or `nothing`: none of them is.
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
"""
function open_session(;
        n_features::Int, n_outputs::Int, n_state::Union{Int, Nothing},
        hidden_layer_sizes::AbstractVector{<:Integer}, activation::AbstractString,
        stability::AbstractString, contraction::Real, horizon::Union{Real, Nothing},
        solver::AbstractString, abstol::Real, reltol::Real, ode_abstol::Real, ode_reltol::Real,
        max_steps::Int, adjoint::AbstractString, loss::AbstractString,
        learning_rate::Real, alpha::Real, jacobian_penalty::Real, train_encoder::Bool,
        device::AbstractString, names::AbstractVector, arrays::AbstractVector,
        layers = nothing, opt_count::Int = 0, opt_m = nothing, opt_v = nothing,
    )
    model = Model(;
        n_features, n_outputs, n_state, hidden_layer_sizes, activation = Symbol(activation),
        stability = Symbol(stability), contraction = Float64(contraction),
        horizon = horizon === nothing ? nothing : Float64(horizon),
    )
    layers === nothing || (model = with_layers(model, layers...))
    spec = Solver(
        Symbol(solver), abstol, reltol, ode_abstol, ode_reltol, max_steps, Symbol(adjoint)
    )
    training = Training(Symbol(loss), learning_rate, alpha, jacobian_penalty, train_encoder)
    check(model, spec, training)
    place = find_device(device)
    check_place(model, place)
    order = order_of(model, names)
    theta = flatten(model, order, arrays, eltype(first(arrays)), place)
    session = Session(
        model, spec, training, place, order, weight_mask(model, theta), theta, nothing,
        opt_count, nothing, Pool(),
    )
    session.optimizer = optimizer_tree(session, opt_m, opt_v)
    return session
end

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
    # Said now, if its package is not there.
    solver.name in ODE_METHODS && ode_algorithm(Val(solver.name))
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

"""Return where in `names` the model's parameters are."""
function order_of(model::Model, names)
    expected = parameter_names(model)
    order = indexin(expected, String.(names))
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
function flatten(model::Model, order, arrays, ::Type{T}, device::Device) where {T}
    copies = [Array{T}(arrays[i]) for i in order]
    for (name, shape, array) in zip(parameter_names(model), parameter_shapes(model), copies)
        size(array) == shape && continue
        throw(DimensionMismatch("$name has the shape $shape; found $(size(array))."))
    end
    return to_device(device, glue(copies))
end

"""Return host arrays in the caller's order from a vector like theta."""
function unflatten(session::Session, flat)
    arrays = cut(Array(flat), parameter_shapes(session.model))
    given = Vector{Any}(undef, length(arrays))
    for (array, i) in zip(arrays, session.order)
        given[i] = Array(array)
    end
    return given
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

Make copies of the training data resident: `x` (n_features, n), of any real element type, which
batches alone are converted from; `target` (n_outputs, n) or, for `log_loss`, (n,), classes from 1;
`weight` (n,), not negative.
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
    encoder, cell, decoder = parts(model, theta)
    h = model.encoder(encoder, to_device(session.device, Array{T}(x)))
    outcome = find_states(model, solver, acting_cell(model, cell), h, each)
    return (
        state = Array(outcome.u), output = Array(model.decoder(decoder, outcome.u)),
        residual = residual(outcome), outcome.n_evals, outcome.converged,
    )
end

function find_states(model::Model, solver::Solver, flat, h, each)
    n = size(h, 2)
    shares_steps = model.horizon !== nothing || solver.name in ODE_METHODS
    is_alone = !each || n <= 1 || !shares_steps
    if model.horizon === nothing && is_alone
        return search(solver, model.cell, flat, h)
    end
    found = Ref{Outcome}()
    if is_alone
        integrate(model, solver, flat, h, model.horizon, found)
        return found[]
    end
    return together([find_states(model, solver, flat, h[:, j:j], false) for j in 1:n])
end

function trajectory(session::Session{T}, x, depth::Integer) where {T}
    x = to_device(session.device, Array{T}(x))
    return Array(trajectory(session.model, session.theta, x, Int(depth)))
end

"""
    versions() -> Dict{String, String}

Return the versions of Julia and of the packages that do the work.
"""
function versions()
    modules = (
        Lux, LuxCore, DiffEqFlux, SteadyStateDiffEq, OrdinaryDiffEqTsit5, SciMLSensitivity,
        SciMLBase, Zygote, Optimisers, PyDEQ,
    )
    found = Dict(string(nameof(m)) => string(pkgversion(m)) for m in modules)
    found["julia"] = string(VERSION)
    return found
end
