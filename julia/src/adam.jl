# Adam in one pass over the weights.

"""
    adam!(leaf, theta, gradient)

Do to `theta` and the `leaf` of Optimisers' tree what `Optimisers.update!` does for its rule `Adam`,
to the same bits (tested), in one pass.
"""
function adam!(leaf::Optimisers.Leaf{<:Adam}, theta::Vector{T}, gradient::Vector{T}) where {T}
    (; eta, beta, epsilon) = leaf.rule
    m, v, powers = leaf.state
    adam!(m, v, theta, gradient, T(eta), T.(beta), T(epsilon), powers)
    leaf.state = (m, v, powers .* T.(beta))
    return nothing
end

function adam!(m::V, v::V, theta::V, gradient::V, η::T, β, ϵ::T, powers) where {T, V <: Vector{T}}
    β1, β2 = β
    bias1, bias2 = one(T) .- powers
    @inbounds @simd ivdep for i in eachindex(m, v, theta, gradient)
        g = gradient[i]
        mi = β1 * m[i] + (one(T) - β1) * g
        vi = β2 * v[i] + (one(T) - β2) * abs2(g)
        m[i], v[i] = mi, vi
        theta[i] -= mi / bias1 / (sqrt(vi / bias2) + ϵ) * η
    end
    return nothing
end
