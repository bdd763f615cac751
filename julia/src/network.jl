# A multilayer perceptron of Lux layers, its parameters in one flat vector.

"""
    Network(widths, activation)

Dense layers between the `widths`, each but the last ending in the activation; a single width means
no layer at all, the identity. Its parameters are a flat vector: weight (n_out, n_in) and bias
(n_out,) of each layer in turn.
"""
struct Network
    layers::Vector{AbstractLuxLayer}
    shapes::Vector{Dims}
    activation::Symbol
    n_parameters::Int
end

function Network(widths::AbstractVector{<:Integer}, activation::Symbol)
    layers = AbstractLuxLayer[]
    shapes = Dims[]
    for i in 1:(length(widths) - 1)
        n_in, n_out = widths[i], widths[i + 1]
        σ = i < length(widths) - 1 ? ACTIVATIONS[activation] : identity
        push!(layers, Dense(n_in => n_out, σ))
        push!(shapes, (n_out, n_in), (n_out,))
    end
    return Network(layers, shapes, activation, sum(prod, shapes; init = 0))
end

"""
    (network)(flat, v)

Return the value (n_out, n) at `v` (n_in, n), with the parameters `flat`.
"""
function (network::Network)(flat::AbstractVector, v::AbstractMatrix)
    arrays = cut(flat, network.shapes)
    for i in eachindex(network.layers)
        ps = (weight = arrays[2i - 1], bias = arrays[2i])
        v = first(network.layers[i](v, ps, NamedTuple()))
    end
    return v
end

"""
    Buffers(network, v)

What [`evaluate!`](@ref) writes to, for arguments like `v` (n_in, n): one array a layer.
"""
struct Buffers{M <: AbstractMatrix}
    layers::Vector{M}
end

function Buffers(network::Network, v::AbstractMatrix)
    return Buffers([similar(v, first(shape), size(v, 2)) for shape in network.shapes[1:2:end]])
end

"""
    evaluate!(buffers, network, flat, v)

Return what `network(flat, v)` does, in one of the buffers: no array is allocated. A search evaluates
the cell some hundred times a batch, and would spend a quarter of its time on collecting garbage.
"""
function evaluate!(buffers::Buffers, network::Network, flat::AbstractVector, v::AbstractMatrix)
    arrays = cut(flat, network.shapes)
    for (i, buffer) in enumerate(buffers.layers)
        mul!(buffer, arrays[2i - 1], v)
        σ = i < length(buffers.layers) ? ACTIVATIONS[network.activation] : identity
        activate!(buffer, σ, arrays[2i])
        v = buffer
    end
    return v
end

"""Add the bias and apply the activation, for which this is compiled."""
function activate!(buffer, σ::F, bias) where {F}
    buffer .= σ.(buffer .+ bias)
    return nothing
end

"""
    pull(network, flat, v, row)

Return ``(\\partial f / \\partial v)^T row`` (n_in, n) at `v` (n_in, n) for `row` (n_out, n).

Written out, because Zygote then differentiates it once more, as the Jacobian penalty needs.
"""
function pull(network::Network, flat::AbstractVector, v::AbstractMatrix, row::AbstractMatrix)
    return pull_layer(network, cut(flat, network.shapes), 1, v, row)
end

function pull_layer(network, arrays, i, v, row)
    weight, bias = arrays[2i - 1], arrays[2i]
    i == length(network.layers) && return weight' * row
    y = first(network.layers[i](v, (; weight, bias), NamedTuple()))
    return weight' * (slope(network.activation, y) .* pull_layer(network, arrays, i + 1, y, row))
end

"""
    Pullback(network, flat, v)

What [`pull`](@ref) returns at one `v` (n_in, n), for many rows: it keeps the slopes of the
activations, and `pullback(out, row)` writes to `out` (n_in, n) without allocating.
"""
struct Pullback{W <: AbstractMatrix, M <: AbstractMatrix}
    weights::Vector{W}
    slopes::Vector{M}  # of the hidden layers, (n_hidden, n) each
    rows::Vector{M}    # like them
end

function Pullback(network::Network, flat::AbstractVector, v::AbstractMatrix)
    arrays = cut(flat, network.shapes)
    slopes = typeof(v)[]
    for i in 1:(length(network.layers) - 1)
        ps = (weight = arrays[2i - 1], bias = arrays[2i])
        v = first(network.layers[i](v, ps, NamedTuple()))
        push!(slopes, slope(network.activation, v))
    end
    return Pullback([weight for weight in arrays[1:2:end]], slopes, similar.(slopes))
end

function (pullback::Pullback)(out::AbstractMatrix, row::AbstractMatrix)
    (; weights, slopes, rows) = pullback
    for i in length(slopes):-1:1
        mul!(rows[i], weights[i + 1]', row)
        row = rows[i] .*= slopes[i]
    end
    return mul!(out, first(weights)', row)
end

"""
Lux's functions for the names of `pydeq.model.spec.ACTIVATIONS`: those that its layers take themselves in
the place of `tanh` and `sigmoid`, which cost as much as the matrix products.
"""
const ACTIVATIONS = Dict{Symbol, Function}(
    :identity => identity,
    :logistic => Lux.sigmoid_fast,
    :tanh => Lux.tanh_fast,
    :relu => Lux.relu,
)

"""The activation's derivative as a function of its value `y`."""
function slope(activation::Symbol, y::AbstractMatrix{T}) where {T}
    activation === :tanh && return one(T) .- y .* y
    activation === :logistic && return y .* (one(T) .- y)
    activation === :relu && return T.(y .> zero(T))
    return @ignore_derivatives fill!(similar(y), one(T))
end
