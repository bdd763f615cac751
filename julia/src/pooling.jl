# Pools of real images on the CPU, by loops.
#
# They take 0.17 of the time of whole arrays (`layers.jl`), and 0.08 on the way back. Tested against them.

"""Do `f` for each channel; the inner loop's length is known, so that it becomes instructions on vectors."""
@inline function for_channels(f::F, channels) where {F}
    for from in 0:16:(channels - 16)
        @simd ivdep for c in 1:16
            f(from + c)
        end
    end
    foreach(f, (channels - channels % 16 + 1):channels)
    return nothing
end

"""Go through the squares: `f(at, places)` has what comes before the channels of a value and of its pixels."""
@inline function each_square(f::F, layer::PoolLayer, n_samples) where {F}
    (width, height, channels), (w, h, _), k = layer.given, layer.gives, layer.size
    at = 0
    for n in 1:n_samples, j in 1:h, i in 1:w
        corner = ((n - 1) * height + (j - 1) * k) * width + (i - 1) * k
        f(at, (channels * (corner + dj * width + di) for dj in 0:(k - 1) for di in 0:(k - 1)))
        at += channels
    end
    return nothing
end

function pooled(layer::PoolLayer, pool::Pool, a::AbstractArray{T}) where {T <: Real}
    channels = last(layer.gives)
    y = borrow_samples(pool, T, channels, layer.gives[1:2]..., n_samples(a))
    each_square(layer, n_samples(a)) do at, places
        for_channels(c -> @inbounds(y[at + c] = layer.is_mean ? zero(T) : T(-Inf)), channels)
        for from in places
            if layer.is_mean
                for_channels(c -> @inbounds(y[at + c] += a[from + c]), channels)
            else
                for_channels(c -> @inbounds(y[at + c] = larger(y[at + c], a[from + c])), channels)
            end
        end
    end
    layer.is_mean && (y .*= inv(T(layer.size^2)))
    return y
end

"""The larger number, or the one that is none."""
larger(a, b) = ifelse((a < b) | isnan(b), b, a)

function spread(layer::PoolLayer, pool::Pool, memory, row::AbstractArray{T}) where {T <: Real}
    channels, n = last(layer.given), n_samples(row)
    into = fill!(borrow_samples(pool, T, channels, layer.given[1:2]..., n), 0)
    layer.is_mean ? spread_mean!(into, layer, row) : spread_largest!(into, layer, memory..., row)
    return into
end

function spread_mean!(into, layer, row::AbstractArray{T}) where {T}
    channels, share = size(row, 1), inv(T(layer.size^2))
    each_square(layer, n_samples(row)) do at, places
        for from in places
            for_channels(c -> @inbounds(into[from + c] = share * row[at + c]), channels)
        end
    end
    return nothing
end

function spread_largest!(into, layer, a, y, row::AbstractArray{T}) where {T}
    channels = size(row, 1)
    shares = zeros(T, channels)
    each_square(layer, n_samples(row)) do at, places
        for_channels(c -> @inbounds(shares[c] = 0), channels)
        for from in places
            for_channels(c -> @inbounds(shares[c] += a[from + c] == y[at + c]), channels)
        end
        for_channels(c -> @inbounds(shares[c] = row[at + c] / shares[c]), channels)
        for from in places
            for_channels(c -> @inbounds(into[from + c] = (a[from + c] == y[at + c]) * shares[c]), channels)
        end
    end
    return nothing
end
