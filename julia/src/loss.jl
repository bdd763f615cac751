# The loss of a batch and its penalties; the twins of `pydeq.model.metrics.loss` and the JAX engine.

const LOSSES = (:squared_error, :log_loss)

"""
    loss_value(name, output, target, weight)

Return the loss of a batch, without penalties.

`squared_error`: mean over outputs and weighted mean over samples of the squares;
`log_loss`: weighted mean over samples of the softmax cross-entropy, `output` being logits. `output`
is (n_outputs, n), `target` too or, for `log_loss`, (n,): classes, from 1; `weight` is (1, n) and not
all zero.
"""
function loss_value(name::Symbol, output, target, weight)
    if name === :log_loss
        is_class = @ignore_derivatives (1:size(output, 1)) .== reshape(target, 1, :)
        per_sample = -sum(is_class .* log_softmax(output); dims = 1)
        return sum(weight .* per_sample) / sum(weight)
    end
    return sum(weight .* abs2.(output .- target)) / (size(output, 1) * sum(weight))
end

"""
    loss_and_slope(name, output, target, weight) -> (loss, slope)

Return the same, and its gradient in the `output`.
"""
function loss_and_slope(name::Symbol, output::AbstractMatrix, target, weight)
    total = sum(weight)
    if name === :log_loss
        logs = log_softmax(output)
        slope = exp.(logs)
        loss = take_classes!(slope, logs, target, weight)
        slope .*= weight ./ total
        return loss / total, slope
    end
    slope = output .- target
    loss = sum(weight .* abs2.(slope)) / (size(output, 1) * total)
    slope .*= 2 .* weight ./ (size(output, 1) * total)
    return loss, slope
end

"""Subtract one from the entries of `slope` of the classes; return minus the weighted sum of their `logs`."""
function take_classes!(slope::Matrix{T}, logs, classes, weight) where {T}
    loss = zero(T)
    for (j, class) in enumerate(classes)
        loss -= weight[j] * logs[class, j]
        slope[class, j] -= one(T)
    end
    return loss
end

function take_classes!(slope::AbstractMatrix, logs, classes, weight)
    is_class = (1:size(logs, 1)) .== reshape(classes, 1, :)
    slope .-= is_class
    return -sum(ifelse.(is_class, weight .* logs, zero(eltype(logs))))
end

"""The sum of the squares of the entries of theta that are weights."""
weight_squares(is_weight, theta) = sum(is_weight .* abs2.(theta))

# Zygote would go through dual numbers for every entry.
function ChainRulesCore.rrule(::typeof(weight_squares), is_weight, theta)
    squares_pullback(cotangent) = (NoTangent(), NoTangent(), 2 * unthunk(cotangent) .* is_weight .* theta)
    return weight_squares(is_weight, theta), squares_pullback
end

function log_softmax(a)
    shifted = a .- @ignore_derivatives maximum(a; dims = 1)
    return shifted .- log.(sum(exp.(shifted); dims = 1))
end

"""
    jacobian_estimate(cell, flat, z, h, probe) -> (1, n)

Return ``||probe^T \\partial f/\\partial z||_2^2`` per sample at the states `z` and the inputs `h`, both
(width, n): Hutchinson's estimate of ``||\\partial f/\\partial z||_F^2`` (Bai et al. 2021), `probe`
(width,) having entries of mean 0 and variance 1. The states are constants.
"""
function jacobian_estimate(cell::Network, flat, z, h, probe)
    v = (@ignore_derivatives z) .+ h
    row = @ignore_derivatives probe .+ zero(v)
    return sum(abs2, pull(cell, flat, v, row); dims = 1)
end
