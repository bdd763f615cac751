# What Python's `pydeq.layers` compute, and back: values and vector-Jacobian products by hand.
#
# The maps are those of Lux's `Dense`, `Conv(...; cross_correlation = true)`, `GroupNorm`, `MaxPool`
# and `MeanPool`, against which they are tested. A Lux `Chain` has its architecture in its type, so
# that each one would compile for half a minute; these compile once for all architectures.
#
# An array is (channels, width, height, n), or (size, n) for values in a row: see `images.jl`. The fields
# of layers are in Python's order, (width, height, channels).
# Where it is complex its imaginary part is tiny, and carries the derivative along a direction: the
# maps are analytic, so that it comes out as exactly as the value (Squire and Trapp 1998).

"""
A layer of a network. `shapes` are those of its parameters, `names` theirs. With `ps` the parameters,
kernels as [`inner_kernel`](@ref) has them:

  - `forward(layer, pool, ps, a)` returns the value at `a`, and a vector of arrays for the way back, which
    have the sample as their last axis;
  - `pull(layer, pool, ps, memory, row)` returns ``(\\partial value / \\partial a)^T`` times `row`;
  - `gradients(layer, pool, ps, memory, row)` returns the gradients in the parameters.

Their arrays are the pool's, but for the gradients.
"""
abstract type Layer end

"""A layer of layers: a contractive cell multiplies what its own ones give by a factor."""
abstract type NestedLayer <: Layer end

shapes(::Layer) = Dims[]
parameter_names(::Layer) = String[]
gradients(::Layer, pool, ps, memory, row) = ()

"""What `pull` and what `gradients` returns."""
pull_with_gradients(layer::Layer, args...) = pull(layer, args...), gradients(layer, args...)

"""Apply a linear map, which is for real arrays, to each part of what may be complex."""
linearly(f, a::AbstractArray{<:Real}) = f(a)
linearly(f, a::AbstractArray{<:Complex}) = complex.(f(real.(a)), f(imag.(a)))

"""The same for a bilinear map; of what is complex the imaginary part alone is returned."""
bilinearly(f, a::AbstractArray{<:Real}, b::AbstractArray{<:Real}) = f(a, b)
function bilinearly(f, a::AbstractArray{<:Complex}, b::AbstractArray{<:Complex})
    return complex.(false, f(real.(a), imag.(b)) .+ f(imag.(a), real.(b)))
end

"""Add a bias to each channel of `y`."""
add_bias!(y, bias) = each_channel!(+, y, (y,), (bias,))

struct DenseLayer <: Layer
    name::String
    n_in::Int
    n_out::Int
end

shapes(layer::DenseLayer) = Dims[(layer.n_out, layer.n_in), (layer.n_out,)]
parameter_names(layer::DenseLayer) = layer.name .* [".weight", ".bias"]

"""The product of two matrices."""
function product(pool, a, b)
    return mul!(borrow_samples(pool, eltype(b), size(a, 1), size(b, 2)), a, b)
end

function forward(::DenseLayer, pool, (weight, bias), a)
    return add_bias!(linearly(a -> product(pool, weight, a), a), bias), Any[a]
end

pull(::DenseLayer, pool, (weight, _), memory, row) = linearly(row -> product(pool, weight', row), row)

gradients(::DenseLayer, pool, ps, (a,), row) =
    bilinearly((row, a) -> row * a', row, a), channel_sums(identity, (row,))

"""Padded by (k - 1) ÷ 2 pixels before the image and k ÷ 2 after it, with zeros or the image again."""
struct ConvLayer <: Layer
    name::String
    kernel::Dims{4}  # (width, height, in, out)
    stride::Int
    is_circular::Bool
    image::Dims{2}
end

shapes(layer::ConvLayer) = Dims[layer.kernel, (layer.kernel[4],)]
parameter_names(layer::ConvLayer) = layer.name .* [".weight", ".bias"]

sides(layer::ConvLayer) = ((layer.kernel[1] - 1) ÷ 2, layer.kernel[1] ÷ 2)

function patches_of(layer::ConvLayer)
    before, after = sides(layer)
    layer.is_circular || return Patches(layer.image, layer.kernel[1:2], layer.stride, before, after)
    return Patches(layer.image .+ (before + after), layer.kernel[1:2], layer.stride, 0, 0)
end

"""Where the pixels of an axis of the padded image are from."""
function around(layer::ConvLayer, size)
    before, after = sides(layer)
    return mod1.((1 - before):(size + after), size)
end

function forward(layer::ConvLayer, pool, (weight, bias), a)
    seen = a
    if layer.is_circular
        columns, rows = (around(layer, size) for size in layer.image)
        seen = a[:, columns, rows, :]
    end
    patches = patches_of(layer)
    y = linearly(seen -> convolve(pool, seen, weight, patches), seen)
    return add_bias!(y, bias), Any[seen]
end

function pull(layer::ConvLayer, pool, (weight, _), memory, row)
    patches = patches_of(layer)
    row = linearly(row -> pull_convolution(pool, row, weight, patches), row)
    layer.is_circular || return row
    columns, rows = (around(layer, size) for size in layer.image)
    folded = fill!(borrow_samples(pool, eltype(row), size(row, 1), layer.image..., size(row, 4)), 0)
    for (j, to_row) in enumerate(rows), (i, to_column) in enumerate(columns)
        view(folded, :, to_column, to_row, :) .+= view(row, :, i, j, :)
    end
    return folded
end

function gradients(layer::ConvLayer, pool, ps, (seen,), row)
    patches = patches_of(layer)
    weight = bilinearly((seen, row) -> weight_of_convolution(pool, seen, row, patches), seen, row)
    return weight, channel_sums(identity, (row,))
end

struct ActivationLayer <: Layer
    activation::Symbol
end

function forward(layer::ActivationLayer, pool, ps, a)
    y = activated(ACTIVATIONS[layer.activation], layer, pool, a)
    return y, Any[y]
end

activated(σ::F, layer, pool, a::AbstractArray{<:Real}) where {F} = elementwise(σ, pool, a)
function activated(σ::F, layer, pool, a::AbstractArray{<:Complex}) where {F}
    y = σ.(real.(a))
    return complex.(y, times_slopes(layer, pool, imag.(a), y))
end

pull(layer::ActivationLayer, pool, ps, (y,), row) = times_slopes(layer, pool, row, y)

"""The `row` times the activation's slopes where its values are `y`."""
function times_slopes(layer::ActivationLayer, pool, row, y)
    layer.activation === :tanh && return elementwise((r, y) -> r * (1 - y * y), pool, row, y)
    layer.activation === :logistic && return elementwise((r, y) -> r * y * (1 - y), pool, row, y)
    layer.activation === :relu && return elementwise((r, y) -> r * (real(y) > 0), pool, row, y)
    return row
end

struct GroupNormLayer <: Layer
    name::String
    groups::Int
    epsilon::Float64
    given::Dims
end

shapes(layer::GroupNormLayer) = Dims[layer.given[end:end], layer.given[end:end]]
parameter_names(layer::GroupNormLayer) = layer.name .* [".scale", ".bias"]

"""The samples."""
each_sample(a) = eachslice(a; dims = ndims(a))

"""What each channel's group has of the channels' `sums` over so many pixels, in the mean."""
function group_means(layer::GroupNormLayer, sums, n_pixels)
    in_groups = reshape(sums, :, layer.groups)
    means = sum(in_groups; dims = 1) ./ (size(in_groups, 1) * n_pixels)
    return vec(means .+ zero(in_groups))
end

function forward(layer::GroupNormLayer, pool, (scale, bias), a)
    unit, y = borrow_samples(pool, eltype(a), size(a)...), borrow_samples(pool, eltype(a), size(a)...)
    inverse = borrow_samples(pool, eltype(a), size(a, 1), n_samples(a))
    means(f, sample) = group_means(layer, channel_sums(f, (sample,)), length(sample) ÷ size(sample, 1))
    square(x) = x * x  # also where x is complex
    for (a, unit, y, inverse) in zip(each_sample(a), each_sample(unit), each_sample(y), eachcol(inverse))
        each_channel!(-, unit, (a,), (means(identity, a),))
        inverse .= inv.(sqrt.(means(square, unit) .+ eltype(scale)(layer.epsilon)))
        each_channel!(*, unit, (unit,), (inverse,))
        each_channel!((u, s, b) -> u * s + b, y, (unit,), (scale, bias))
    end
    return y, Any[unit, inverse]
end

function pull(layer::GroupNormLayer, pool, (scale, _), (unit, inverse), row)
    into = borrow_samples(pool, eltype(row), size(row)...)
    for (unit, inverse, row, into) in
        zip(each_sample(unit), eachcol(inverse), each_sample(row), each_sample(into))
        means(sums) = group_means(layer, scale .* sums, length(row) ÷ size(row, 1))
        mean, along = means(channel_sums(identity, (row,))), means(channel_sums(*, (row, unit)))
        each_channel!(into, (row, unit), (scale, mean, along, inverse)) do r, u, s, mean, along, inverse
            (r * s - mean - u * along) * inverse
        end
    end
    return into
end

gradients(::GroupNormLayer, pool, ps, (unit, _), row) =
    channel_sums(*, (row, unit)), channel_sums(identity, (row,))

"""One value for each square of pixels; what is left over at the end is not looked at."""
struct PoolLayer <: Layer
    is_mean::Bool
    size::Int
    given::Dims{3}
    gives::Dims{3}
end

"""The pixels of the squares: (channels, size, width, size, height, n)."""
function squares(layer::PoolLayer, a)
    (w, h, channels), k = layer.gives, layer.size
    return reshape(a[:, 1:(w * k), 1:(h * k), :], channels, k, w, k, h, :)
end

"""Values of squares, one for each pixel's place in a square."""
of_squares(layer::PoolLayer, values) =
    ((w, h, channels) = layer.gives; reshape(values, channels, 1, w, 1, h, :))

"""Of each pixel whether it is its square's largest, as its share of them: equal ones share the gradient."""
function shares_of(layer::PoolLayer, pixels, largest)
    is_largest = real.(pixels) .== real.(of_squares(layer, largest))
    return is_largest ./ sum(real(eltype(pixels)), is_largest; dims = (2, 4))
end

forward(layer::PoolLayer, pool, ps, a) = (y = pooled(layer, pool, a); (y, layer.is_mean ? Any[] : Any[a, y]))

function pooled(layer::PoolLayer, pool, a)
    (w, h, channels), pixels = layer.gives, squares(layer, a)
    of_value(y) = reshape(y, channels, w, h, :)
    layer.is_mean && return of_value(sum(pixels; dims = (2, 4)) ./ layer.size^2)
    y = of_value(maximum(real, pixels; dims = (2, 4)))
    eltype(a) <: Real && return y
    return complex.(y, of_value(sum(shares_of(layer, pixels, y) .* imag.(pixels); dims = (2, 4))))
end

pull(layer::PoolLayer, pool, ps, memory, row) = spread(layer, pool, memory, row)

function spread(layer::PoolLayer, pool, memory, row)
    (w, h, channels), k, n = layer.gives, layer.size, n_samples(row)
    shares = layer.is_mean ? fill(inv(real(eltype(row))(k^2)), 1, k, 1, k) :
        shares_of(layer, squares(layer, first(memory)), last(memory))
    into = fill!(similar(row, channels, layer.given[1:2]..., n), 0)
    into[:, 1:(w * k), 1:(h * k), :] .= reshape(shares .* of_squares(layer, row), channels, w * k, h * k, n)
    return into
end

struct FlattenLayer <: Layer
    given::Dims
end

function forward(layer::FlattenLayer, pool, ps, a)
    flat = borrow_samples(pool, eltype(a), prod(layer.given), n_samples(a))
    return outer_order!(pool, flat, a, layer.given), Any[]
end

pull(layer::FlattenLayer, pool, ps, memory, row) = inner_order(pool, row, layer.given)

"""What its layers make of the input, plus the input."""
struct ResidualLayer <: NestedLayer
    name::String
    layers::Vector{Layer}
end

shapes(layer::ResidualLayer) = reduce(vcat, shapes.(layer.layers); init = Dims[])
parameter_names(layer::ResidualLayer) = reduce(vcat, parameter_names.(layer.layers); init = String[])

function forward(layer::ResidualLayer, pool, ps, a)
    inner, memory = forward_all(layer.layers, pool, ps, a)
    total = elementwise(+, pool, a, inner)
    return total, push!(memory, Any[total])  # for the gradient in what it is multiplied by
end

function pull(layer::ResidualLayer, pool, ps, memory, row)
    return elementwise(+, pool, row, pull_all(layer.layers, pool, ps, memory, row))
end

gradients(layer::NestedLayer, args...) = last(pull_with_gradients(layer, args...))

function pull_with_gradients(layer::ResidualLayer, pool, ps, memory, row)
    inner, found = pull_all_with_gradients(layer.layers, pool, ps, memory, row)
    return elementwise(+, pool, row, inner), found
end

"""The parameters of each of the layers."""
function each_with_parameters(layers, ps)
    ends = cumsum(length.(shapes.(layers)))
    return [ps[(stop - length(shapes(layer)) + 1):stop] for (layer, stop) in zip(layers, ends)]
end

"""What layers one after another make of `a`, and the memory of each."""
function forward_all(layers, pool, ps, a)
    memories = Any[]
    for (layer, own) in zip(layers, each_with_parameters(layers, ps))
        a, memory = forward(layer, pool, own, a)
        push!(memories, memory)
    end
    return a, memories
end

function pull_all(layers, pool, ps, memories, row)
    owns = each_with_parameters(layers, ps)
    for i in length(layers):-1:1
        row = pull(layers[i], pool, owns[i], memories[i], row)
    end
    return row
end

"""The row at what goes into the first layer, and the gradients in all parameters, in order."""
function pull_all_with_gradients(layers, pool, ps, memories, row)
    owns, found = each_with_parameters(layers, ps), Any[]
    for i in length(layers):-1:1
        row, own = pull_with_gradients(layers[i], pool, owns[i], memories[i], row)
        prepend!(found, own)
    end
    return row, found
end
