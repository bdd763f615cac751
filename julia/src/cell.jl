# The cell in place: its values, and products with its Jacobian; on the CPU, or on a GPU.
#
# A search evaluates the cell some hundred times a batch. Each call works on the first columns of
# what it is given, as many as there are: those of the samples that are still under way (on a GPU: all).

"""
    Cell(network, flat, h, pool = nothing)

The cell with its weights as they act, for batches of at most `size(h, 2)` samples: it owns the
arrays that it works in, or has them from the [`Pool`](@ref).
"""
struct Cell{T <: AbstractFloat, M <: AbstractMatrix{T}, V <: AbstractVector{T}}
    shapes::Vector{Dims}
    weights::Vector{M}
    biases::Vector{V}
    layers::Vector{M}  # the value of each layer, (n_out, B)
    v::M               # what goes into the first, (width, B)
    σ::Function
    activation::Symbol
    is_monotone::Bool
end

function Cell(network::Network, flat::AbstractVector{T}, h::AbstractMatrix{T}, pool = nothing) where {T}
    arrays, V, M = cut(flat, network.shapes), array_type(pool, T, Val(1)), array_type(pool, T, Val(2))
    weights = M[borrow_copy(pool, weight) for weight in arrays[1:2:end]]
    biases = V[borrow_copy(pool, bias) for bias in arrays[2:2:end]]
    layers = M[borrow(pool, T, length(bias), size(h, 2)) for bias in biases]
    v, σ = borrow_like(pool, h), ACTIVATIONS[network.activation]
    return Cell(
        network.shapes, weights, biases, layers, v, σ, network.activation, network.is_monotone
    )
end

"""The first `k` columns."""
front(a::AbstractMatrix, k::Int) = view(a, :, 1:k)

"""
    evaluate!(out, cell, u, h)

Write f(u, h) to `out`; all are (width, k).
"""
function evaluate!(out, cell::Cell, u, h)
    values = forward!(cell, u, h)
    copyto!(out, values)
    return out
end

"""Return f(u, h) in an array that the cell owns."""
function forward!(cell::Cell, u, h)
    k, last_layer = size(u, 2), length(cell.layers)
    v = front(cell.v, k)
    if cell.is_monotone
        y = front(only(cell.layers), k)
        mul!(y, only(cell.weights), u)
        y .+= h
        activate!(y, cell.σ, only(cell.biases))
        return y
    end
    v .= u .+ h
    for i in 1:last_layer
        y = front(cell.layers[i], k)
        mul!(y, cell.weights[i], v)
        activate!(y, i < last_layer ? cell.σ : identity, cell.biases[i])
        v = y
    end
    return v
end

"""What [`apply!`](@ref) multiplies with, and [`move!`](@ref) moves samples in."""
abstract type AbstractJacobian{T <: AbstractFloat} end

"""df/du of a cell at the samples of `u`."""
linearize(cell::Cell, u, h, pool = nothing) = Jacobian(cell, u, h, pool)

"""
    Jacobian(cell, u, h, pool = nothing)

df/du at the k samples of `u`, as the slopes of the activations; it owns the arrays that its
products work in. [`apply!`](@ref) multiplies with it.
"""
struct Jacobian{T <: AbstractFloat, M <: AbstractMatrix{T}} <: AbstractJacobian{T}
    weights::Vector{M}
    slopes::Vector{M}  # after each layer; the MLP has none after its last
    rows::Vector{M}    # like the layers' values
end

function Jacobian(cell::Cell{T, M}, u, h, pool = nothing) where {T, M}
    k = size(u, 2)
    forward!(cell, u, h)
    rows = M[borrow(pool, T, size(y, 1), k) for y in cell.layers]
    slopes = M[
        slope!(borrow(pool, T, size(y, 1), k), cell.activation, front(y, k))
            for y in cell.layers[1:n_slopes(cell)]
    ]
    return Jacobian{T, M}(cell.weights, slopes, rows)
end

"""How many of its layers end in the activation."""
n_slopes(cell::Cell) = length(cell.layers) - !cell.is_monotone

"""Multiply the `row` by what [`slope`](@ref) returns."""
function times_slope!(row, activation::Symbol, y::AbstractMatrix{T}) where {T}
    activation === :tanh && return row .*= one(T) .- y .* y
    activation === :logistic && return row .*= y .* (one(T) .- y)
    activation === :relu && return row .*= y .> zero(T)
    return row
end

"""Write what [`slope`](@ref) returns to `out`."""
function slope!(out, activation::Symbol, y::AbstractMatrix{T}) where {T}
    activation === :tanh && return out .= one(T) .- y .* y
    activation === :logistic && return out .= y .* (one(T) .- y)
    activation === :relu && return out .= y .> zero(T)
    return fill!(out, one(T))
end

"""
    apply!(out, jacobian, v, transposed)

Write ``J v`` to `out`, or ``J^T v``; both are (width, k), for the first k samples.
"""
function apply!(out, jacobian::Jacobian, v, transposed::Bool)
    return transposed ? pull_back!(out, jacobian, v) : push_forward!(out, jacobian, v)
end

function pull_back!(out, jacobian::Jacobian, row)
    (; weights, slopes, rows) = jacobian
    k = size(row, 2)
    for i in length(weights):-1:1
        if i <= length(slopes)
            scaled = front(rows[i], k)
            scaled .= front(slopes[i], k) .* row
            row = scaled
        end
        target = i == 1 ? out : front(rows[i - 1], k)
        mul!(target, weights[i]', row)
        row = target
    end
    return out
end

function push_forward!(out, jacobian::Jacobian, v)
    (; weights, slopes, rows) = jacobian
    k, last_layer = size(v, 2), length(weights)
    for i in 1:last_layer
        target = i == last_layer ? out : front(rows[i], k)
        mul!(target, weights[i], v)
        i <= length(slopes) && (target .*= front(slopes[i], k))
        v = target
    end
    return out
end

"""Put the sample of column `from` in the place of that of column `to`."""
function move!(jacobian::Jacobian, from::Int, to::Int)
    foreach(slopes -> move_column!(slopes, from, to), jacobian.slopes)
    return nothing
end

function move_column!(a::Matrix, from::Int, to::Int)
    n = size(a, 1)
    copyto!(a, (to - 1) * n + 1, a, (from - 1) * n + 1, n)
    return nothing
end

function move_column!(a::Array{<:Any, 3}, from::Int, to::Int)
    n = size(a, 1) * size(a, 2)
    copyto!(a, (to - 1) * n + 1, a, (from - 1) * n + 1, n)
    return nothing
end

move_column!(a::Vector, from::Int, to::Int) = (a[to] = a[from]; nothing)

"""Sums of the products of the entries of two matrices' columns, (1, n)."""
dots(a, b) = sum(a .* b; dims = 1)

"""Sum of the products of the entries of two vectors."""
function dot_of(a::AbstractVector{T}, b::AbstractVector{T}) where {T}
    total = zero(T)
    @inbounds @simd for i in eachindex(a, b)
        total += a[i] * b[i]
    end
    return total
end

"""Subtract `factor` times `v` from `a`."""
function subtract!(a::AbstractVector{T}, factor::T, v::AbstractVector{T}) where {T}
    iszero(factor) && return a
    @inbounds @simd for i in eachindex(a, v)
        a[i] -= factor * v[i]
    end
    return a
end

"""The sum of the squares of ``a - b``."""
function squared_distance(a::AbstractVector{T}, b::AbstractVector{T}) where {T}
    total = zero(T)
    @inbounds @simd for i in eachindex(a, b)
        total += abs2(a[i] - b[i])
    end
    return total
end

"""Maximum norms of ``f - u`` and of f, and whether both are finite."""
function gap_and_size(u::AbstractVector{T}, fu::AbstractVector{T}) where {T}
    # Bits of numbers that are not negative are ordered as these are, infinity and nan last. So compared, it
    # takes 0.06 to 0.17 of the time.
    bits(number) = reinterpret(Unsigned, abs(number))
    gap, size_of_f = bits(zero(T)), bits(zero(T))
    @inbounds @simd for i in eachindex(u, fu)
        gap = max(gap, bits(fu[i] - u[i]))
        size_of_f = max(size_of_f, bits(fu[i]))
    end
    norms = reinterpret(T, gap), reinterpret(T, size_of_f)
    return norms..., all(isfinite, norms)
end
