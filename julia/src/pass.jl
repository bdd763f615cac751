# A batch's loss and its gradient without Zygote, for the dense cell on the CPU.
#
# An epoch of MNIST takes 0.86 of the CPU time of the general way, Zygote through `batch_loss`, with
# `DEQClassifier()`, and 0.87 with the contractive cell of the post: it makes fewer arrays as long as
# theta, and evaluates the cell once less. Tested against the general way.

"""Whether [`pass_by_hand`](@ref) knows all that the session's loss is made of."""
function goes_by_hand(session::Session)
    (; model, solver, training) = session
    has_penalty = model.stability === :jacobian && training.jacobian_penalty != 0
    is_known = model.horizon === nothing && solver.adjoint !== :unrolled && !has_penalty
    is_dense = all(part -> part isa Network, (model.encoder, model.cell, model.decoder))
    return is_known && is_dense && is_on_host(session.theta)
end

"""
    pass_by_hand(session, x, target, weight, tape) -> (loss, back)

Return what `Zygote.pullback` of [`batch_loss`](@ref) does, `back` being a function of nothing.
"""
function pass_by_hand(session::Session{T}, x, target, weight, tape::Tape) where {T}
    (; model, solver, training, theta) = session
    encoder, acting, decoder = parts(model, theta)
    h = model.encoder(encoder, x)
    flat, back_to_acting = Zygote.pullback(cell -> acting_cell(model, cell), acting)
    outcome = tape.found[] = search(solver, model.cell, flat, h)
    kept = row_like(h, outcome.converged)
    w = tape.weight[] = row_like(h, weight .* outcome.converged)
    u = kept .* outcome.u
    output = model.decoder(decoder, u)
    loss, back_to_output = Zygote.pullback(o -> loss_value(training.loss, o, target, w), output)
    penalty = T(training.alpha) / sum(w)
    if training.alpha != 0
        loss += penalty / 2 * squares_of_weights(session.is_weight, theta)
    end
    function back()
        gradient = similar(theta)
        to_encoder, to_acting, to_decoder = parts(model, gradient)
        row = dense_pullback!(to_decoder, model.decoder, decoder, only(back_to_output(one(T))), u)
        row = row .* kept
        to_flat, to_h = cell_pullback(solver, model.cell, flat, h, outcome.u, row)
        to_acting .= only(back_to_acting(to_flat))
        isempty(to_encoder) || weight_gradient!(cut(to_encoder, model.encoder.shapes)..., to_h, x)
        if training.alpha != 0
            gradient .+= penalty .* session.is_weight .* theta
        end
        return gradient
    end
    return loss, back
end

"""[`weight_squares`](@ref) without an array."""
function squares_of_weights(is_weight::Vector{T}, theta::Vector{T}) where {T}
    total = zero(T)
    @inbounds @simd for i in eachindex(is_weight, theta)
        total += is_weight[i] * abs2(theta[i])
    end
    return total
end

"""Write the gradients of a layer's weight and bias; `row` is that of its value at `v`."""
function weight_gradient!(weight, bias, row, v)
    mul!(weight, row, v')
    sum!(bias, row)
    return nothing
end

"""Write the gradient of a network of one layer or none, and return that of what goes into it."""
function dense_pullback!(gradient, network::Network, flat, row, v)
    isempty(network.layers) && return row
    weight_gradient!(cut(gradient, network.shapes)..., row, v)
    return first(cut(flat, network.shapes))' * row
end

"""
    cell_pullback(solver, network, flat, h, z, g) -> (flat, h)

Return the gradients of the equilibria `z`, whose own is `g`, in the cell's parameters and in `h`.
"""
function cell_pullback(solver::Solver, network::Network, flat, h, z, g::Matrix{T}) where {T}
    cell = Cell(network, flat, h)
    jacobian = Jacobian(cell, z, h)  # after which the cell holds the values of its layers
    slopes = [copy(slope) for slope in jacobian.slopes]  # those of samples that are done get lost
    row = solver.adjoint === :jfb ? g : solve_adjoint(solver, jacobian, g)
    gradient = Vector{T}(undef, network.n_parameters)
    arrays = cut(gradient, network.shapes)
    for i in length(cell.layers):-1:1
        i <= length(slopes) && (row = row .* slopes[i])
        into = i > 1 ? cell.layers[i - 1] : cell.is_monotone ? z : cell.v
        weight_gradient!(arrays[2i - 1], arrays[2i], row, into)
        cell.is_monotone && return gradient, row
        row = cell.weights[i]' * row
    end
    return gradient, row
end
