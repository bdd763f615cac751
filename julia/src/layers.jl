# What Python's `pydeq.layers` compute, and back: values and vector-Jacobian products by hand.
#
# The maps are those of Lux's `Dense`, `Conv(...; cross_correlation = true)`, `GroupNorm`, `MaxPool`
# and `MeanPool`, against which they are tested. A Lux `Chain` has its architecture in its type, so
# that each one would compile for half a minute; these compile once for all architectures.
#
# An array is (width, height, channels, n), or (size, n) for values in a row: the bytes of numpy's.
# Where it is complex its imaginary part is tiny, and carries the derivative along a direction: the
# maps are analytic, so that it comes out as exactly as the value (Squire and Trapp 1998).

"""
A layer of a network. `shapes` are those of its parameters, `names` theirs. With `ps` the parameters:

  - `forward(layer, ps, a)` returns the value at `a`, and a vector of arrays for the way back, which
    have the sample as their last axis;
  - `pull(layer, ps, memory, row)` returns ``(\\partial value / \\partial a)^T`` times `row`;
  - `gradients(layer, ps, memory, row)` returns the gradients in the parameters.
"""
abstract type Layer end

"""A layer of layers: a contractive cell multiplies what its own ones give by a factor."""
abstract type NestedLayer <: Layer end

shapes(::Layer) = Dims[]
parameter_names(::Layer) = String[]
gradients(::Layer, ps, memory, row) = ()

"""What `pull` and what `gradients` returns."""
pull_with_gradients(layer::Layer, args...) = pull(layer, args...), gradients(layer, args...)

"""The number of samples."""
n_samples(a::Array) = size(a, ndims(a))

"""Apply a linear map, which is for real arrays, to each part of what may be complex."""
by_parts(f, a::Array{<:Real}) = f(a)
by_parts(f, a::Array{<:Complex}) = complex.(f(real.(a)), f(imag.(a)))

"""The same for a bilinear map; of what is complex the imaginary part alone is returned."""
by_parts(f, a::Array{<:Real}, b::Array{<:Real}) = f(a, b)
function by_parts(f, a::Array{<:Complex}, b::Array{<:Complex})
    return complex.(false, f(real.(a), imag.(b)) .+ f(imag.(a), real.(b)))
end

struct DenseLayer <: Layer
    name::String
    n_in::Int
    n_out::Int
end

shapes(layer::DenseLayer) = Dims[(layer.n_out, layer.n_in), (layer.n_out,)]
parameter_names(layer::DenseLayer) = layer.name .* [".weight", ".bias"]

function forward(::DenseLayer, (weight, bias), a)
    return by_parts(a -> weight * a, a) .+ bias, Any[a]
end

pull(::DenseLayer, (weight, _), memory, row) = by_parts(row -> weight' * row, row)

gradients(::DenseLayer, ps, (a,), row) = by_parts((row, a) -> row * a', row, a), vec(sum(row; dims = 2))

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

function forward(layer::ConvLayer, (weight, bias), a)
    seen = a
    if layer.is_circular
        columns, rows = (around(layer, size) for size in layer.image)
        seen = a[columns, rows, :, :]
    end
    patches = patches_of(layer)
    y = by_parts(seen -> convolve(seen, weight, patches), seen)
    y .+= reshape(bias, 1, 1, :)
    return y, Any[seen]
end

function pull(layer::ConvLayer, (weight, _), memory, row)
    patches = patches_of(layer)
    row = by_parts(row -> pull_convolution(row, weight, patches), row)
    layer.is_circular || return row
    columns, rows = (around(layer, size) for size in layer.image)
    folded = zeros(eltype(row), layer.image..., size(row, 3), size(row, 4))
    for (j, to_row) in enumerate(rows), (i, to_column) in enumerate(columns)
        view(folded, to_column, to_row, :, :) .+= view(row, i, j, :, :)
    end
    return folded
end

function gradients(layer::ConvLayer, ps, (seen,), row)
    patches = patches_of(layer)
    weight = by_parts((seen, row) -> weight_of_convolution(seen, row, patches), seen, row)
    return weight, vec(sum(row; dims = (1, 2, 4)))
end

struct ActivationLayer <: Layer
    activation::Symbol
end

function forward(layer::ActivationLayer, ps, a)
    y = activated(ACTIVATIONS[layer.activation], layer, a)
    return y, Any[y]
end

activated(σ::F, layer, a::Array{<:Real}) where {F} = σ.(a)
function activated(σ::F, layer, a::Array{<:Complex}) where {F}
    y = σ.(real.(a))
    return complex.(y, times_slopes(layer, imag.(a), y))
end

pull(layer::ActivationLayer, ps, (y,), row) = times_slopes(layer, row, y)

"""The `row` times the activation's slopes where its values are `y`."""
function times_slopes(layer::ActivationLayer, row, y)
    layer.activation === :tanh && return row .* (1 .- y .* y)
    layer.activation === :logistic && return row .* y .* (1 .- y)
    layer.activation === :relu && return row .* (real.(y) .> 0)
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

"""The values of each group as a column (size, groups, n)."""
in_groups(layer::GroupNormLayer, a) = reshape(a, :, layer.groups, n_samples(a))

"""Values of channels, along the axis of the channels."""
of_channels(layer::GroupNormLayer, values) =
    reshape(values, ntuple(Returns(1), length(layer.given) - 1)..., :)

mean_of_columns(a) = sum(a; dims = 1) ./ size(a, 1)

function forward(layer::GroupNormLayer, (scale, bias), a)
    unit = in_groups(layer, a)
    unit = unit .- mean_of_columns(unit)
    inverse = inv.(sqrt.(mean_of_columns(unit .* unit) .+ eltype(scale)(layer.epsilon)))
    unit = unit .* inverse
    y = reshape(unit, size(a)) .* of_channels(layer, scale) .+ of_channels(layer, bias)
    return y, Any[unit, inverse]
end

function pull(layer::GroupNormLayer, (scale, _), (unit, inverse), row)
    r = in_groups(layer, row .* of_channels(layer, scale))
    r = (r .- mean_of_columns(r) .- unit .* mean_of_columns(r .* unit)) .* inverse
    return reshape(r, size(row))
end

function gradients(layer::GroupNormLayer, ps, (unit, _), row)
    axes = setdiff(1:ndims(row), length(layer.given))
    total(a) = vec(sum(a; dims = Tuple(axes)))
    return total(row .* reshape(unit, size(row))), total(row)
end

"""One value for each square of pixels; what is left over at the end is not looked at."""
struct PoolLayer <: Layer
    is_mean::Bool
    size::Int
    given::Dims{3}
    gives::Dims{3}
end

"""The pixels of the squares: (size, width, size, height, channels, n)."""
function squares(layer::PoolLayer, a)
    (w, h, channels), k = layer.gives, layer.size
    return reshape(a[1:(w * k), 1:(h * k), :, :], k, w, k, h, channels, :)
end

function forward(layer::PoolLayer, ps, a)
    pixels = squares(layer, a)
    if layer.is_mean
        return reshape(sum(pixels; dims = (1, 3)) ./ layer.size^2, layer.gives..., :), Any[]
    end
    largest = maximum(real, pixels; dims = (1, 3))
    shares = real.(pixels) .== largest
    shares = shares ./ sum(real(eltype(a)), shares; dims = (1, 3))  # equal ones share the gradient
    y = eltype(a) <: Complex ? complex.(largest, sum(shares .* imag.(pixels); dims = (1, 3))) : largest
    return reshape(y, layer.gives..., :), Any[shares]
end

function pull(layer::PoolLayer, ps, memory, row)
    (w, h, channels), k, n = layer.gives, layer.size, n_samples(row)
    row = reshape(row, 1, w, 1, h, channels, n)
    shares = layer.is_mean ? fill(inv(real(eltype(row))(k^2)), k, 1, k) : only(memory)
    into = zeros(eltype(row), layer.given..., n)
    into[1:(w * k), 1:(h * k), :, :] .= reshape(shares .* row, w * k, h * k, channels, n)
    return into
end

struct FlattenLayer <: Layer
    given::Dims
end

forward(::FlattenLayer, ps, a) = reshape(a, :, n_samples(a)), Any[]
pull(layer::FlattenLayer, ps, memory, row) = reshape(row, layer.given..., :)

"""What its layers make of the input, plus the input."""
struct ResidualLayer <: NestedLayer
    name::String
    layers::Vector{Layer}
end

shapes(layer::ResidualLayer) = reduce(vcat, shapes.(layer.layers); init = Dims[])
parameter_names(layer::ResidualLayer) = reduce(vcat, parameter_names.(layer.layers); init = String[])

function forward(layer::ResidualLayer, ps, a)
    inner, memory = forward_all(layer.layers, ps, a)
    total = a .+ inner
    return total, push!(memory, Any[total])  # for the gradient in what it is multiplied by
end

function pull(layer::ResidualLayer, ps, memory, row)
    return row .+ pull_all(layer.layers, ps, memory, row)
end

gradients(layer::NestedLayer, args...) = last(pull_with_gradients(layer, args...))

function pull_with_gradients(layer::ResidualLayer, ps, memory, row)
    inner, found = pull_all_with_gradients(layer.layers, ps, memory, row)
    return row .+ inner, found
end

"""The parameters of each of the layers."""
function each_with_parameters(layers, ps)
    ends = cumsum(length.(shapes.(layers)))
    return [ps[(stop - length(shapes(layer)) + 1):stop] for (layer, stop) in zip(layers, ends)]
end

"""What layers one after another make of `a`, and the memory of each."""
function forward_all(layers, ps, a)
    memories = Any[]
    for (layer, own) in zip(layers, each_with_parameters(layers, ps))
        a, memory = forward(layer, own, a)
        push!(memories, memory)
    end
    return a, memories
end

function pull_all(layers, ps, memories, row)
    owns = each_with_parameters(layers, ps)
    for i in length(layers):-1:1
        row = pull(layers[i], owns[i], memories[i], row)
    end
    return row
end

"""The row at what goes into the first layer, and the gradients in all parameters, in order."""
function pull_all_with_gradients(layers, ps, memories, row)
    owns, found = each_with_parameters(layers, ps), Any[]
    for i in length(layers):-1:1
        row, own = pull_with_gradients(layers[i], owns[i], memories[i], row)
        prepend!(found, own)
    end
    return row, found
end
