# Arrays of samples that layers work on: where their entries lie, and loops over them.
#
# Python's images have each channel in one piece, (width, height, channels). Inside of a network an
# array is (channels, width, height, n): what a kernel sees of a row is then one piece, and the
# products are those that BLAS is quickest at, 1.5 times as quick as with the channels last. Values in
# a row are (size, n) in either order.

"""The number of samples."""
n_samples(a::AbstractArray) = size(a, ndims(a))

"""The pixels and channels of a sample that is of the shape `given` in Python's order, Julia's way."""
pixels_and_channels(given::Dims) = prod(given[1:(end - 1)]), last(given)

"""
    inner_order(pool, columns, given) -> (channels, width, height, n)

Return the samples of the shape `given` that are the `columns` (size, n), in the order of layers.
"""
function inner_order(pool, columns::AbstractMatrix{T}, given::Dims) where {T}
    (pixels, channels), n = pixels_and_channels(given), size(columns, 2)
    a = borrow_samples(pool, T, channels, given[1:(end - 1)]..., n)
    turn!(pool, reshape(a, channels, pixels, n), reshape(columns, pixels, channels, n))
    return a
end

"""Write the samples `a`, which are of the shape `gives` in Python's order, to the columns `out`."""
function outer_order!(pool, out::AbstractMatrix, a, gives::Dims)
    (pixels, channels), n = pixels_and_channels(gives), size(out, 2)
    turn!(pool, reshape(out, pixels, channels, n), reshape(a, channels, pixels, n))
    return out
end

"""Write each sample's matrix in `a` to `out`, transposed."""
turn!(::AbstractPool, out, a) = permutedims!(out, a, (2, 1, 3))

# On the CPU `permutedims!` takes 2.5 times as long, of views.
function turn!(::Pool, out, a)
    rows, columns, n = size(out)
    for place in (0:(n - 1)) .* (rows * columns), column in 1:columns
        @inbounds @simd ivdep for row in 1:rows
            out[place + (column - 1) * rows + row] = a[place + (row - 1) * columns + column]
        end
    end
    return out
end

"""A kernel (width, height, in, out) as (out, in, width, height), and back; other parameters stay."""
inner_kernel(weight::AbstractArray{<:Any, 4}) = permutedims(weight, (4, 3, 1, 2))
inner_kernel(values::AbstractArray) = copy(values)
outer_kernel(weight::AbstractArray{<:Any, 4}) = permutedims(weight, (3, 4, 2, 1))
outer_kernel(values::AbstractArray) = values

"""The values of each channel as a row (channels, pixels)."""
in_channels(a) = reshape(a, size(a, 1), :)

"""The function of the entries of arrays of one size, the first of which says the type."""
function elementwise(f::F, pool, a, others...) where {F}
    out = borrow_samples(pool, eltype(a), size(a)...)
    # (Of vectors a loop is one, and not one for each of the axes.)
    vec(out) .= f.(vec(a), vec.(others)...)
    return out
end

"""The rows of an image, a column each, (channels * width, rows); of values in a row: all of them."""
in_image_rows(a) = reshape(a, size(a, 1) * width_of(a), :)
width_of(a) = ndims(a) > 2 ? size(a, 2) : 1

"""
    each_channel!(f, out, arrays, numbers)

Write the function of the entries of the `arrays` and, for each channel, of the `numbers` to `out`.
"""
function each_channel!(f::F, out, arrays::Tuple, numbers::Tuple) where {F}
    # (A broadcast takes seven times as long, and so do loops that are as short as channels are few.)
    into, from = in_image_rows(out), map(in_image_rows, arrays)
    tiled = map(number -> repeat(number, width_of(out)), numbers)
    @inbounds for row in axes(into, 2)
        @simd ivdep for i in axes(into, 1)
            into[i, row] = f(map(a -> @inbounds(a[i, row]), from)..., map(number -> @inbounds(number[i]), tiled)...)
        end
    end
    return out
end

"""
    channel_sums(f, arrays) -> (channels,)

Return the sums over all but the channels of a function of the arrays' entries.
"""
function channel_sums(f::F, arrays::Tuple) where {F}
    a = first(arrays)
    from = map(in_image_rows, arrays)
    sums = zeros(eltype(a), size(first(from), 1))
    @inbounds for row in axes(first(from), 2)
        @simd ivdep for i in eachindex(sums)
            sums[i] += f(map(a -> @inbounds(a[i, row]), from)...)
        end
    end
    return vec(sum(reshape(sums, size(a, 1), :); dims = 2))
end
