# Upper bounds of spectral norms, for cells that are scaled to contract.

"""Squarings in [`log_norm_bound`](@ref)."""
const GRAM_ITERATIONS = 5

"""
    log_norm_bound(weight)

Return the logarithm of an upper bound of the spectral norm of `weight`, by Gram iteration
(Delattre et al. 2023, algorithm 1): ``||G^{32}||_F^{1/64}`` with ``G = W W^T`` or ``W^T W``,
whichever is smaller, each squaring of G preceded by dividing it by its Frobenius norm.
"""
log_norm_bound(weight::AbstractMatrix) = first(gram_iteration(weight))

is_wide(weight) = size(weight, 1) < size(weight, 2)

"""Return the bound and G, G^2, G^4, ..., each up to a factor."""
function gram_iteration(weight::AbstractMatrix{T}, pool = nothing) where {T}
    n = minimum(size(weight))
    gram = like(pool, weight, n, n)
    is_wide(weight) ? mul!(gram, weight, weight') : mul!(gram, weight', weight)
    log_norm = zero(real(T))  # logarithm of the factors divided out, per power of G
    powers = [gram]
    for _ in 1:GRAM_ITERATIONS
        size_of_gram = sqrt(sum(abs2, gram) + floatmin(real(T)))
        gram .*= inv(size_of_gram)
        gram = mul!(like(pool, weight, n, n), gram, gram)
        push!(powers, gram)
        log_norm = 2 * (log_norm + log(size_of_gram))
    end
    log_norm = log_norm + log(sum(abs2, gram) + floatmin(real(T))) / 2
    return log_norm / 2^(GRAM_ITERATIONS + 1), powers
end

like(::Nothing, a::AbstractArray, dims...) = similar(a, dims...)
like(pool::AbstractPool, ::AbstractArray{T}, dims...) where {T} = borrow(pool, T, dims...)

"""
    norm_slope(weight, powers, pool = nothing)

Return the gradient of the bound in the weight, from the powers of [`gram_iteration`](@ref).

By d log sigma = tr(M dG) / (2 tr(M G)) with M = G^63, the product of the powers: each of them is
used once, where Zygote would go back through all of the products.
"""
function norm_slope(weight::AbstractMatrix{T}, powers, pool = nothing) where {T}
    m, spare = first(powers), like(pool, weight, size(first(powers))...)
    for power in Iterators.drop(powers, 1)
        m, spare = mul!(spare, m, power), m === first(powers) ? like(pool, weight, size(m)...) : m
    end
    # Of the first power, G / ||G||, as of the weight, the factor goes out with the trace.
    slope = like(pool, weight, size(weight)...)
    is_wide(weight) ? mul!(slope, m, weight) : mul!(slope, weight, m)
    slope .*= inv(real(dot(slope, weight)) + floatmin(real(T)))
    return slope
end

function ChainRulesCore.rrule(::typeof(log_norm_bound), weight::AbstractMatrix)
    bound, powers = gram_iteration(weight)
    bound_pullback(cotangent) = (NoTangent(), unthunk(cotangent) .* norm_slope(weight, powers))
    return bound, bound_pullback
end

"""
    contraction_scale(log_product, n_layers, bound)

Return ``min(1, (bound / product)^{1/L})`` for L layers with that product of their norms.
"""
function contraction_scale(log_product::T, n_layers, bound) where {T}
    return exp(min(zero(T), (T(log(bound)) - log_product) / n_layers))
end

"""
    contract!(weights, bound, pool) -> back!

Scale the weights so that the product of the bounds of their norms is at most `bound`. `back!` makes
the gradients in the scaled weights those in the weights as they were.
"""
function contract!(weights::Vector{<:AbstractMatrix{T}}, bound, pool) where {T}
    n_layers = length(weights)
    found = [gram_iteration(weight, pool) for weight in weights]
    log_product = sum(first, found)
    slopes = [norm_slope(w, powers, pool) for (w, (_, powers)) in zip(weights, found)]
    scale = contraction_scale(log_product, n_layers, bound)
    foreach(weight -> rmul!(weight, scale), weights)
    function back!(gradients)
        # With s the scale, W -> s W: ds = -s / L times the sum of the slopes, where it is below 1.
        along = T(log(bound)) < log_product ?
            sum(dot(g, w) for (g, w) in zip(gradients, weights)) / n_layers : zero(T)
        for (gradient, slope) in zip(gradients, slopes)
            gradient .= scale .* gradient .- along .* slope
        end
        return nothing
    end
    return back!
end
