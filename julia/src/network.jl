# A multilayer perceptron, its parameters in one flat vector.

"""
What an encoder, a cell or a decoder is: a function of its flat parameters and of samples as columns,
`network(flat, v)`; a cell also one of states and inputs, `network(flat, u, h)`.
"""
abstract type AbstractNetwork end

"""
    Network(widths, activation; is_monotone = false)

Dense layers between the `widths`, each but the last ending in the activation; a single width means
no layer at all, the identity. Its parameters are a flat vector: weight (n_out, n_in) and bias
(n_out,) of each layer in turn.

As a cell it is a function of u + h. The monotone cell is another: one layer that ends in the
activation and has h beside the weight, f(u, h) = act(W u + h + b).
"""
struct Network <: AbstractNetwork
    shapes::Vector{Dims}
    activation::Symbol
    n_parameters::Int
    is_monotone::Bool
end

function Network(widths::AbstractVector{<:Integer}, activation::Symbol; is_monotone::Bool = false)
    shapes = Dims[]
    for i in 1:(length(widths) - 1)
        push!(shapes, (widths[i + 1], widths[i]), (widths[i + 1],))
    end
    return Network(shapes, activation, sum(prod, shapes; init = 0), is_monotone)
end

n_layers(network::Network) = length(network.shapes) ÷ 2

"""
    (network)(flat, v)

Return the value (n_out, n) at `v` (n_in, n), with the parameters `flat`.
"""
function (network::Network)(flat::AbstractVector, v::AbstractMatrix)
    arrays = cut(flat, network.shapes)
    for i in 1:n_layers(network)
        v = layer_value(network, arrays, i, v)
    end
    return v
end

"""The value of the layer `i` of a network whose parameters are the `arrays`."""
function layer_value(network::Network, arrays, i, v)
    y = arrays[2i - 1] * v .+ arrays[2i]
    return i < n_layers(network) ? ACTIVATIONS[network.activation].(y) : y
end

"""
    encode(encoder, flat, x)

The value at the data `x`, which need no gradient: without this rule a third of an encoder's time in
training goes into theirs.
"""
encode(encoder::Network, flat::AbstractVector, x::AbstractMatrix) = encoder(flat, x)

function ChainRulesCore.rrule(::typeof(encode), encoder::Network, flat::AbstractVector, x::AbstractMatrix)
    function encode_pullback(cotangent)
        isempty(encoder.shapes) && return NoTangent(), NoTangent(), zero(flat), NoTangent()
        row = unthunk(cotangent)
        return NoTangent(), NoTangent(), glue([row * x', vec(sum(row; dims = 2))]), NoTangent()
    end
    return encode(encoder, flat, x), encode_pullback
end

"""
    cell(flat, u, h)

Return f(u, h) (width, n) of the states `u` and the encoded inputs `h` (width, n).
"""
function (cell::Network)(flat::AbstractVector, u::AbstractMatrix, h::AbstractMatrix)
    cell.is_monotone || return cell(flat, u .+ h)
    return ACTIVATIONS[cell.activation].(cell(flat, u) .+ h)
end

"""
    lux_cell(code, given) -> AbstractNetwork

Return the cell of the Lux layer that a line of Julia makes, which is given the tuple `(u, h)` of arrays
(given..., n). A method of the extension for Lux and Zygote.
"""
function lux_cell end

"""
    draw_parameters(code, seed) -> (names, arrays)

Return parameters of the Lux layer that a line of Julia makes, drawn by Lux. A method of that extension.
"""
function draw_parameters end

"""What the CPU's own loops are for."""
const HostMatrix = Union{Matrix, SubArray{<:Any, 2, <:Matrix}}

"""Add the bias and apply the activation, for which this is compiled."""
activate!(buffer, σ::F, bias) where {F} = (buffer .= σ.(buffer .+ bias); nothing)
function activate!(buffer::HostMatrix, σ::F, bias) where {F}
    # A broadcast takes seven times as long: it asks at each entry which way the bias extends.
    @inbounds for j in axes(buffer, 2)
        @simd for i in axes(buffer, 1)
            buffer[i, j] = σ(buffer[i, j] + bias[i])
        end
    end
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
    weight = arrays[2i - 1]
    i == n_layers(network) && return weight' * row
    y = layer_value(network, arrays, i, v)
    return weight' * (slope(network.activation, y) .* pull_layer(network, arrays, i + 1, y, row))
end

"""
NNlib's functions for the names of `pydeq.model.spec.ACTIVATIONS`: those that Lux's layers take in the
place of `tanh` and `sigmoid`, which cost as much as the matrix products.
"""
const ACTIVATIONS = Dict{Symbol, Function}(
    :identity => identity,
    :logistic => sigmoid_fast,
    :tanh => tanh_fast,
    :relu => relu,
)

"""The activation's derivative as a function of its value `y`."""
function slope(activation::Symbol, y::AbstractMatrix{T}) where {T}
    activation === :tanh && return one(T) .- y .* y
    activation === :logistic && return y .* (one(T) .- y)
    return @ignore_derivatives slope!(similar(y), activation, y)
end
