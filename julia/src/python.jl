# What Python calls: settings are names beside their values, and arrays are numpy's, which are read and
# written where they are. So the first call compiles next to nothing. (Layers: `description.jl`.)

"""
    open_session(names, values) -> Session

Open a session with the settings of those names, which are the fields of Python's `ModelSpec`,
`SolverSpec` and `OptimizerSpec` (`pydeq.model.spec`), each of its own type: nothing is converted. Of the
solver, `solver` is the name, `ode_abstol` and `ode_reltol` control an ODE's steps. Beside these it takes

  - `names`, `arrays`: the parameters, as [`parameter_names`](@ref) has them; they are copied, and the
    session works in their element type.
  - `layers`: encoder, cell, decoder and first guess as [`LayeredNetwork`](@ref)s, `n_state` being the
    number of values of the state; what is `nothing` is the dense one. Or `nothing`: all of them are.
  - `device`: `auto`, `cpu` or `cuda`, or a [`Device`](@ref).
  - `opt_count`, `opt_m`, `opt_v`: Adam's steps and moments, to go on from; see [`write_moments!`](@ref).
"""
function open_session(names::Vector{String}, values::Vector{Any})
    settings = merge(OPTIONAL_SETTINGS, Dict{Symbol, Any}(zip(Symbol.(names), values)))
    model = model_of(settings)
    check_names(model, settings[:names]::Vector{String})
    theta = flatten(model, settings[:arrays]::Vector)
    device = find_device(settings[:device]::Union{String, Device})
    session = Session(model, solver_of(settings), training_of(settings), theta, device)
    m, v = settings[:opt_m], settings[:opt_v]
    m === nothing || v === nothing || go_on!(session, settings[:opt_count]::Int, m, v)
    return session
end

const OPTIONAL_SETTINGS = Dict{Symbol, Any}(
    :init => "cell", :init_penalty => 0.0, :layers => nothing, :opt_count => 0, :opt_m => nothing,
    :opt_v => nothing,
)

function model_of(settings)
    model = Model(
        settings[:n_features]::Int, settings[:n_outputs]::Int,
        settings[:n_state]::Union{Int, Nothing}, settings[:hidden_layer_sizes]::Vector{Int},
        Symbol(settings[:activation]::String), Symbol(settings[:stability]::String),
        settings[:contraction]::Float64, settings[:horizon]::Union{Float64, Nothing},
    )
    parts = something(settings[:layers], (nothing, nothing, nothing, nothing))
    init = something(parts[4], Symbol(settings[:init]::String))
    init isa Symbol && check_choice("init", init, (:cell, :zero))
    return with_layers(model, parts[1], parts[2], parts[3], init)
end

function solver_of(settings)
    number(name) = settings[name]::Float64
    return Solver(
        Symbol(settings[:solver]::String), number(:abstol), number(:reltol), number(:ode_abstol),
        number(:ode_reltol), settings[:max_steps]::Int, Symbol(settings[:adjoint]::String),
    )
end

function training_of(settings)
    number(name) = settings[name]::Float64
    return Training(
        Symbol(settings[:loss]::String), number(:learning_rate), number(:alpha),
        number(:jacobian_penalty), number(:init_penalty), settings[:train_encoder]::Bool,
    )
end

function check_names(model::Model, found::Vector{String})
    expected = parameter_names(model)
    found == expected && return nothing
    throw(
        ArgumentError(
            "The model has the parameters $(join(expected, ", ")); found $(join(found, ", "))."
        ),
    )
end

"""Give Adam the moments `m` and `v`, lists of arrays, of so many steps."""
function go_on!(session::Session{T}, count::Int, m, v) where {T}
    # The powers of beta by the same multiplications as in training, for the same bits.
    powers = T.(BETAS)
    for _ in 1:count
        powers = powers .* T.(BETAS)
    end
    at_place(arrays) = to_device(session.device, flatten(session.model, arrays))
    session.optimizer.state = (at_place(m), at_place(v), powers)
    session.count = count
    return nothing
end

"""The parameters' arrays as one vector."""
function flatten(model::Model, arrays::Vector)
    names, shapes = parameter_names(model), parameter_shapes(model)
    flat = Vector{eltype(first(arrays))}(undef, sum(prod, shapes; init = 0))
    at = 1
    for (name, shape, array) in zip(names, shapes, arrays)
        if size(array) != shape
            throw(DimensionMismatch("$name has the shape $shape; found $(size(array))."))
        end
        copyto!(flat, at, array, 1, length(array))
        at += length(array)
    end
    return flat
end

"""Write a vector like theta to the parameters' arrays."""
function unflatten!(arrays::Vector, flat)
    host = convert(Array, flat)
    at = 1
    for array in arrays
        copyto!(array, 1, host, at, length(array))
        at += length(array)
    end
    return nothing
end

"""
    array_at(kind, address, shape...) -> Array

Return the memory at that address as an array of numpy's element type `kind`, such as `float32`. It must
be there for as long as the array is used.
"""
function array_at(kind::AbstractString, address::Integer, shape::Integer...)
    haskey(NUMPY_TYPES, kind) || throw(ArgumentError("There is no array of $kind in Julia."))
    return unsafe_wrap(Array, Ptr{NUMPY_TYPES[kind]}(address), Int.(shape))
end

const NUMPY_TYPES = Dict{String, DataType}(
    lowercase(string(T)) => T for T in
        (Bool, Int8, Int16, Int32, Int64, UInt8, UInt16, UInt32, UInt64, Float16, Float32, Float64)
)

"""Take a step as [`train_batch!`](@ref) does, and write what that returns, 7 numbers, to `report`."""
function write_step!(session::Session, indices, probe, depth::Int, report::Vector{Float64})
    (; loss, weight, grad_norm, n_evals, n_samples, worst_residual, n_failed) =
        train_batch!(session, indices, probe, depth)
    report .= (loss, weight, grad_norm, n_evals, n_samples, worst_residual, n_failed)
    return nothing
end

"""
Write what [`equilibrium`](@ref) returns of each sample by itself. The samples are divided among Julia's
threads.
"""
function write_equilibrium!(session::Session{T}, x, state, output, residuals, n_evals, converged) where {T}
    inputs, acting = to_device(session.device, convert(Array{T}, x)), acting_parts(session)
    parts, pools = parts_of(size(inputs, 2), PART, session.pool), pools_of(session, session.n_threads)
    by_parts(parts, session.n_threads) do part, thread
        pool = rewind!(pools[thread])
        outcome, values = outcome_of(session, acting, part_of(inputs, part, pool), true, pool)
        state[:, part] = convert(Array, outcome.u)
        output[:, part] = convert(Array, values)
        residuals[part] = residual(outcome)
        n_evals[part], converged[part] = outcome.n_evals, outcome.converged
    end
    return nothing
end

"""Write the parameters to `arrays`."""
write_params!(session::Session, arrays::Vector{Any}) = unflatten!(arrays, session.theta)

"""Write the optimiser's moments to `m` and `v`, and return its count."""
function write_moments!(session::Session, m::Vector{Any}, v::Vector{Any})
    of_m, of_v, _ = session.optimizer.state
    unflatten!(m, of_m)
    unflatten!(v, of_v)
    return session.count
end

"""Write the gradient of [`loss_and_grad`](@ref) to `arrays`, and return the loss."""
function write_gradient!(session::Session, x, target, weight, probe, depth::Int, arrays::Vector{Any})
    loss, gradient = loss_and_grad(session, x, target, weight, probe, depth)
    unflatten!(arrays, gradient)
    return loss
end

"""Write the iterates to `states` (width, n, depth + 1)."""
function write_trajectory!(session::Session, x, states)
    copyto!(states, trajectory(session, x, size(states, 3) - 1))
    return nothing
end

"""Write what [`jvp`](@ref) returns to `out`."""
function write_jvp!(session::Session, x, u, tangent, out)
    copyto!(out, jvp(session, x, u, tangent))
    return nothing
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
