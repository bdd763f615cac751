# What is added to a batch's loss: of the Jacobian's size, and of a first guess's distance.

"""
    Penalties(session, cell, u, h, u0, probe, w)

The penalties at the states `u` (width, n) that count, with the weights `w` (1, n): their `value`, and
what their gradients are made of, nothing where the model has not that penalty.
"""
struct Penalties{T}
    value::T
    to_guess::Union{AbstractMatrix{T}, Nothing}  # by the first guess; by the states it is the opposite
    back_to_jacobian::Any
end

function Penalties(session, cell, u::AbstractMatrix{T}, h, u0, probe, w) where {T}
    (; model, training) = session
    value, to_guess, back = zero(T), nothing, nothing
    if learns_init(model)
        factor = T(training.init_penalty) / (model.width * sum(w))
        gap = u0 .- u
        value += factor * sum(w .* abs2.(gap))
        to_guess = 2 .* factor .* w .* gap
    end
    if model.stability === :jacobian && training.jacobian_penalty != 0
        factor = T(training.jacobian_penalty) / (model.width * sum(w))
        estimate, pull_estimate = estimate_with_way_back(cell, u, h, probe)
        value += factor * sum(w .* estimate)
        back = () -> pull_estimate(factor .* w)
    end
    return Penalties{T}(value, to_guess, back)
end

learns_init(model::Model) = !(model.init isa Symbol) && model.init.n_parameters > 0

"""Add the gradient in the states, and return that in the first guess."""
function add_guess!(to_u, penalties::Penalties)
    penalties.to_guess === nothing || (to_u .-= penalties.to_guess)
    return penalties.to_guess
end

"""Add the gradient in the cell's parameters, and return `to_h` with that in `h`."""
function add_jacobian!(to_flat, to_h, penalties::Penalties)
    penalties.back_to_jacobian === nothing && return to_h
    more, extra = penalties.back_to_jacobian()
    to_flat .+= view(more, eachindex(to_flat))
    return to_h .+ extra
end

"""
    estimate_with_way_back(cell, u, h, probe) -> (estimate, back)

Return what [`jacobian_estimate`](@ref) does at the states `u`, and `back(cotangent)`, its gradients in
the cell's parameters as they act and in `h`.

The estimate is the square of ``r = J^T p``. So its gradient is that of ``p^T J s`` with the
constant ``s = 2 c r``: a derivative along s, which is carried beside the values.
"""
function estimate_with_way_back(cell::Cell, u, h, probe)
    weights, n, v = cell.weights, length(cell.weights), u .+ h
    values = [v]  # of the layers but the last, from what goes into the first
    for i in 1:(n - 1)
        y = weights[i] * values[i]
        activate!(y, cell.σ, cell.biases[i])
        push!(values, y)
    end
    slopes = [slope(cell.activation, y) for y in values[2:end]]
    rows = [probe .+ zero(v)]  # of what each layer gives, from the last
    for i in n:-1:2
        push!(rows, slopes[i - 1] .* (weights[i]' * last(rows)))
    end
    row = weights[1]' * last(rows)
    reverse!(rows)
    function back(cotangent)
        tangents = [2 .* cotangent .* row]
        changes = typeof(v)[]  # of the layers' sums along it
        for i in 1:(n - 1)
            push!(changes, weights[i] * tangents[i])
            push!(tangents, slopes[i] .* changes[i])
        end
        gradient = fill!(similar(v, sum(prod, cell.shapes)), 0)
        arrays = cut(gradient, cell.shapes)
        mul!(arrays[2n - 1], rows[n], tangents[n]')
        to_value = zero(values[n])
        for i in (n - 1):-1:1
            along = weights[i + 1]' * rows[i + 1]  # of the layer's tangent
            to_value .+= bend(cell.activation, values[i + 1]) .* changes[i] .* along
            to_sum = slopes[i] .* to_value
            mul!(arrays[2i - 1], rows[i], tangents[i]')
            mul!(arrays[2i - 1], to_sum, values[i]', true, true)
            arrays[2i] .= vec(sum(to_sum; dims = 2))
            to_value = weights[i]' * to_sum
        end
        return gradient, to_value
    end
    return sum(abs2, row; dims = 1), back
end

"""What a rule for [`jacobian_estimate`](@ref) returns, of as many parameters."""
function pullback_of(estimate, back, n_parameters)
    function estimate_pullback(cotangent)
        gradient, to_h = back(unthunk(cotangent))
        return NoTangent(), NoTangent(), gradient[1:n_parameters], NoTangent(), to_h, NoTangent()
    end
    return estimate, estimate_pullback
end

"""The derivative of [`slope`](@ref) as a function of the activation's value `y`."""
function bend(activation::Symbol, y::AbstractMatrix{T}) where {T}
    activation === :tanh && return -2 .* y
    activation === :logistic && return one(T) .- 2 .* y
    return zero(y)
end
