# What Python calls: settings are names beside their values, and arrays are numpy's, which are read and
# written where they are. So the first call compiles next to nothing.

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

open_session(names::Vector{String}, values::Vector{Any}) =
    open_session(Dict{Symbol, Any}(zip(Symbol.(names), values)))

"""Take a step as [`train_batch!`](@ref) does, and write what that returns, 7 numbers, to `report`."""
function write_step!(session::Session, indices, probe, depth::Int, report::Vector{Float64})
    (; loss, weight, grad_norm, n_evals, n_samples, worst_residual, n_failed) =
        train_batch!(session, indices, probe, depth)
    report .= (loss, weight, grad_norm, n_evals, n_samples, worst_residual, n_failed)
    return nothing
end

"""Write what [`equilibrium`](@ref) returns of each sample by itself."""
function write_equilibrium!(session::Session, x, state, output, residual, n_evals, converged)
    found = equilibrium(session, x; each = true)
    copyto!(state, found.state)
    copyto!(output, found.output)
    copyto!(residual, found.residual)
    copyto!(n_evals, found.n_evals)
    copyto!(converged, found.converged)
    return nothing
end

"""Write the parameters to `arrays`, in the order of the names."""
write_params!(session::Session, arrays::Vector{Any}) = (unflatten!(arrays, session, session.theta); nothing)

"""Write the optimiser's moments to `m` and `v`, and return its count."""
function write_moments!(session::Session, m::Vector{Any}, v::Vector{Any})
    of_m, of_v, _ = session.optimizer.state
    unflatten!(m, session, of_m)
    unflatten!(v, session, of_v)
    return session.count
end

"""Write the gradient of [`loss_and_grad`](@ref) to `arrays`, and return the loss."""
function write_gradient!(session::Session, x, target, weight, probe, depth::Int, arrays::Vector{Any})
    loss, gradient = loss_and_gradient(session, x, target, weight, probe, depth)
    unflatten!(arrays, session, gradient)
    return loss
end

"""Write the iterates to `states` (width, n, depth + 1)."""
function write_trajectory!(session::Session, x, states)
    copyto!(states, trajectory(session, x, size(states, 3) - 1))
    return nothing
end
