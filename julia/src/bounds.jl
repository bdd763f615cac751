# A contractive cell of layers: upper bounds of what each can stretch, and the scale by them.

"""
    bound_with_slopes(layer, ps) -> (log_bound, slopes)

Return the logarithm of an upper bound of what the layer can stretch, and its gradients in `ps`,
`nothing` for what it does not depend on. Without weights it is 0.

That of a convolution is the largest of its kernel's matrices (in, out) at the frequencies of a
torus: the image or, with zero padding, an image that is larger by the kernel, of which it is a part.
"""
bound_with_slopes(::Layer, ps) = (false, Nothing[])

function bound_with_slopes(::DenseLayer, (weight, _))
    log_bound, slope = unit_bound(weight)
    return log_bound, [slope, nothing]
end

function bound_with_slopes(layer::ConvLayer, (weight, _))
    T = eltype(weight)
    size_of = size_or_one(weight)
    n_in, n_out = size(weight, 3), size(weight, 4)
    waves = waves_of(T, layer)
    spectrum = waves * reshape(weight ./ size_of, :, n_in * n_out)
    matrix(i) = reshape(spectrum[i, :], n_in, n_out)
    pool = Pool()
    largest = argmax([first(gram_iteration(matrix(i), rewind!(pool))) for i in axes(spectrum, 1)])
    log_bound, powers = gram_iteration(matrix(largest))
    slope = norm_slope(matrix(largest), powers)
    along = reshape(real.(waves[largest, :] * vec(slope)'), size(weight))
    return log_bound + log(size_of), [along ./ size_of, nothing]
end

function bound_with_slopes(layer::ResidualLayer, ps)
    inner, slopes = bounds_with_slopes(layer.layers, ps)
    total = sum(inner)
    share = inv(1 + exp(-total))
    together = reduce(vcat, slopes)
    return max(total, zero(total)) + log1p(exp(-abs(total))),
        [slope === nothing ? nothing : share .* slope for slope in together]
end

"""The same for each of the layers."""
function bounds_with_slopes(layers, ps)
    found = [bound_with_slopes(own...) for own in zip(layers, each_with_parameters(layers, ps))]
    return first.(found), last.(found)
end

"""The bound of a matrix and its slope; its size is divided out before anything is multiplied."""
function unit_bound(weight)
    size_of = size_or_one(weight)
    unit = weight ./ size_of
    log_bound, powers = gram_iteration(unit)
    return log_bound + log(size_of), norm_slope(unit, powers) ./ size_of
end

size_or_one(weight) = (size_of = maximum(abs, weight); size_of > 0 ? size_of : one(size_of))

"""
The waves (f, width * height) of a kernel's pixels at half of the frequencies of its torus; at the
others the matrices are the conjugates of these. A kernel has few pixels, so that sums over them are
quicker than a Fourier transform of its torus.
"""
function waves_of(::Type{T}, layer::ConvLayer) where {T}
    k = layer.kernel[1]
    w, h = layer.image .+ (layer.is_circular ? 0 : k - 1)
    at = 0:(k - 1)
    angles = [
        2pi * (column * i / w + row * j / h)
            for column in 0:(w ÷ 2), row in 0:(h - 1), i in at, j in at
    ]
    return Complex{T}.(cis.(.-reshape(angles, :, k * k)))
end

"""
    contract_layers(layers, arrays, contraction) -> (arrays, factor, back)

Scale the cell's N own `Dense` and `Conv` weights, and with `factor` what its own
[`NestedLayer`](@ref)s give, by ``min(1, (contraction / \\prod_i b_i)^{1/N})``, b_i being their bounds.
`back(gradients, to_factor)` returns the gradients in the arrays as they were.

The factor is applied by its root, twice, so that it does not underflow.
"""
function contract_layers(layers, arrays, contraction)
    T = eltype(first(arrays))
    logs, slopes = bounds_with_slopes(layers, arrays)
    is_bounded = [layer isa Union{DenseLayer, ConvLayer, NestedLayer} for layer in layers]
    n_layers = count(is_bounded)
    log_scale = (T(log(contraction)) - sum(logs)) / n_layers
    root = exp(min(log_scale, zero(T)) / 2)
    is_scaled = reduce(vcat, scaled_parameters.(layers))
    scaled = Any[is ? a .* root .* root : a for (a, is) in zip(arrays, is_scaled)]
    function back(gradients, to_factor)
        by_scale = to_factor * root * root +
            sum(sum(g .* a) for (g, a, is) in zip(gradients, scaled, is_scaled) if is; init = zero(T))
        share = log_scale < 0 ? -by_scale / n_layers : zero(T)
        return map(gradients, is_scaled, reduce(vcat, slopes)) do gradient, is, slope
            own = is ? root .* (root .* gradient) : gradient
            slope === nothing ? own : own .+ share .* slope
        end
    end
    return scaled, root * root, back
end

"""Of each parameter whether it is multiplied by the scale."""
scaled_parameters(layer::Layer) = fill(false, length(shapes(layer)))
scaled_parameters(::Union{DenseLayer, ConvLayer}) = [true, false]
