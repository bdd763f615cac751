# The monotone cell that is a convolution (Winston and Kolter 2020, section 4).
#
# f(u, h) = act(W u + h + b) with W = -A^T A + B - B^T, A and B being convolutions, in a plane without
# end or on the image's torus. W is the convolution with one kernel, twice as wide, that they make.

"""The cell as it acts: its convolution is W."""
function monotone_network(cell::LayeredNetwork)
    (; name, kernel, stride, is_circular, image) = first(cell.layers)
    k, channels = kernel[1], kernel[4]
    wide = ConvLayer(name, (2k - 1, 2k - 1, channels, channels), stride, is_circular, image)
    return LayeredNetwork(Layer[wide, last(cell.layers)], cell.given, cell.gives; is_monotone = true)
end

"""The shapes of A, B and b."""
function shapes_of_parts(cell::LayeredNetwork)
    w, _, channels, _ = first(cell.shapes)
    k = (w + 1) ÷ 2
    return Dims[(k, k, channels, channels), (k, k, channels, channels), (channels,)]
end

"""What a kernel's pixels (column, row) meet: the other kernel's place in W, one by one."""
places(k) = [(j, i, (k - j + 1):(2k - j), (k - i + 1):(2k - i)) for i in 1:k, j in 1:k]

"""The place of B's kernel in W's."""
function skew_place(k)
    start = k - (k - 1) ÷ 2
    return start:(start + k - 1)
end

"""The kernel of the transposed convolution."""
turned(kernel) = permutedims(kernel[end:-1:1, end:-1:1, :, :], (1, 2, 4, 3))

"""
    composed(a, b) -> Array

Return W's kernel (2k - 1, 2k - 1, c, c) from those of A and B (k, k, c, c).
"""
function composed(a::AbstractArray{T, 4}, b) where {T}
    k, c = size(a, 1), size(a, 4)
    square, skew = zeros(T, 2k - 1, 2k - 1, c, c), zeros(T, 2k - 1, 2k - 1, c, c)
    flat = reshape(a, :, c)
    for (j, i, columns, rows) in places(k)
        view(square, columns, rows, :, :) .+= reshape(flat * transpose(a[j, i, :, :]), k, k, c, c)
    end
    at = skew_place(k)
    skew[at, at, :, :] = b
    return skew .- turned(skew) .- square
end

"""Return the gradients in A and B from that in W, `g`."""
function decomposed(a::AbstractArray{T, 4}, g) where {T}
    k, c = size(a, 1), size(a, 4)
    flat, to_a = reshape(a, :, c), zeros(T, size(a))
    for (j, i, columns, rows) in places(k)
        block = reshape(-g[columns, rows, :, :], :, c)
        to_a .+= reshape(block * a[j, i, :, :], size(a))
        view(to_a, j, i, :, :) .+= transpose(block) * flat
    end
    at = skew_place(k)
    return to_a, (g .- turned(g))[at, at, :, :]
end

"""The flat parameters of the cell as it acts: W and b."""
function composed_cell(cell::LayeredNetwork, flat)
    a, b, bias = cut(flat, shapes_of_parts(cell))
    return glue([vec(composed(a, b)), bias])
end

function ChainRulesCore.rrule(::typeof(composed_cell), cell::LayeredNetwork, flat)
    composed_pullback(row) = (NoTangent(), NoTangent(), decomposed_cell(cell, flat, unthunk(row)))
    return composed_cell(cell, flat), composed_pullback
end

function decomposed_cell(cell::LayeredNetwork, flat, row)
    a, _, _ = cut(flat, shapes_of_parts(cell))
    to_w, to_bias = cut(row[1:(cell.n_parameters)], cell.shapes)
    to_a, to_b = decomposed(a, to_w)
    return glue([vec(to_a), vec(to_b), vec(to_bias)])
end

function acting_monotone(network::LayeredNetwork, flat, pool)
    acts = composed_cell(network, flat)
    back!(to_own, to_flat) = copyto!(to_own, decomposed_cell(network, flat, to_flat))
    return ActingLayers(network, acts, pool), network.n_parameters, back!
end

"""What is behind the first layer, pulled back to it."""
function after_first(cell::ActingLayers, memories, row)
    row = pull(last(cell.network.layers), cell.pool, (), last(memories), gradient_samples(cell, row))
    return as_columns(cell, row, cell.network.gives)
end

"""The cell's value, for Zygote."""
function monotone_value(cell::LayeredNetwork, flat, u, h)
    return write_value!(similar(u), ActingLayers(cell, flat), u, h)
end

function ChainRulesCore.rrule(::typeof(monotone_value), cell::LayeredNetwork, flat, u, h)
    acting = ActingLayers(cell, flat)
    value, memories = forward_cell(acting, u, h)
    value = as_columns(acting, value, cell.gives)
    function value_pullback(cotangent)
        row = unthunk(cotangent)
        gradient, to_u = pull_gradients(acting, memories, row, true)
        to_h = after_first(acting, memories, row)
        return NoTangent(), NoTangent(), gradient[1:length(flat)], to_u, to_h
    end
    return value, value_pullback
end

"""The linear map W / 2."""
struct HalfConvolution{T} <: AbstractJacobian{T}
    layer::ConvLayer
    ps::Tuple{Array{T, 4}, Vector{T}}
    given::Dims
    pool::Pool
end

"""
    InexactSplitting(cell, u)

[`PeacemanRachford`](@ref) for a convolution, whose (2 I - W)^-1 is no small matrix: the step written
without w is z <- z + (2 I - W)^-1 2 (f(z) - z), and [`solve_linear!`](@ref) solves for it.
"""
struct InexactSplitting{T} <: SearchMethod
    half::HalfConvolution{T}
    gap::Matrix{T}
    change::Matrix{T}
    n_products::Vector{Int}
end

function InexactSplitting(cell::ActingLayers{T}, u) where {T}
    layer, ps = first(cell.network.layers), (first(cell.arrays) ./ 2, zeros(T, cell.network.given[3]))
    half = HalfConvolution{T}(layer, ps, cell.network.given, cell.pool)
    return InexactSplitting{T}(half, similar(u), similar(u), zeros(Int, size(u, 2)))
end

function apply!(out, half::HalfConvolution{T}, v, transposed::Bool) where {T}
    (; layer, ps, given, pool) = half
    meanwhile(pool) do
        a = inner_order(pool, v, given)
        made = transposed ? pull(layer, pool, ps, nothing, a) : first(forward(layer, pool, ps, a))
        outer_order!(pool, out, made, given)
    end
    return out
end

move!(::HalfConvolution, ::Int, ::Int) = nothing
move!(::InexactSplitting, ::Int, ::Int) = nothing

"""What is asked of a step's linear solve, relative to the step."""
const INNER = 1.0e-3

function step!(method::InexactSplitting, cell, s::Search)
    k = s.k
    u, fu = front(s.u, k), front(s.fu, k)
    gap, change = front(method.gap, k), front(method.change, k)
    gap .= fu .- u
    n_products = fill!(view(method.n_products, 1:k), 0)
    solve_linear!(change, n_products, method.half, gap, INNER, false)
    u .+= change
    evaluate!(fu, cell, u, front(s.h, k))
    view(s.n_evals, 1:k) .+= n_products .+ 1
    return nothing
end

PeacemanRachford(cell::ActingLayers, s) = InexactSplitting(cell, s.u)
