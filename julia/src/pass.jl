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

Return what `Zygote.pullback` of [`batch_loss`](@ref) does, `back` being a function of nothing. The
gradient that `back` returns and the tape's outcome are of the session's pool.
"""
function pass_by_hand(session::Session{T}, x, target, weight, tape::Tape) where {T}
    (; model, solver, training, theta, pool) = session
    encoder, own, decoder = parts(model, theta)
    h = dense(model.encoder, encoder, x, pool)
    cell, back_to_own! = acting(model, own, h, pool)
    outcome = tape.found[] = search(solver, cell, h, pool)
    kept = row_like(h, outcome.converged)
    w = tape.weight[] = row_like(h, weight .* outcome.converged)
    u = borrow_like(pool, outcome.u)
    u .= kept .* outcome.u
    output = dense(model.decoder, decoder, u, pool)
    loss, back_to_output = Zygote.pullback(o -> loss_value(training.loss, o, target, w), output)
    penalty = T(training.alpha) / sum(w)
    if training.alpha != 0
        loss += penalty / 2 * squares_of_weights(session.is_weight, theta)
    end
    function back()
        gradient = borrow_like(pool, theta)
        to_encoder, to_own, to_decoder = parts(model, gradient)
        row = only(back_to_output(one(T)))
        row = dense_pullback!(to_decoder, model.decoder, decoder, row, u, pool)
        to_u = borrow_like(pool, u)
        to_u .= kept .* row
        to_flat = model.cell.is_monotone ? borrow(pool, T, model.cell.n_parameters) : to_own
        arrays = cut(to_flat, model.cell.shapes)
        to_h = cell_pullback!(arrays, solver, cell, h, outcome.u, to_u, pool)
        back_to_own!(to_own, to_flat)
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

"""
    acting(model, flat, h, pool) -> (cell, back!)

Return the [`Cell`](@ref) with its weights as they act, and `back!(to_own, to_flat)`, which writes the
gradient in the parameters as they are trained, where `to_flat` is that in those that act. The two
are one array, but for a monotone cell.
"""
function acting(model::Model, flat, h, pool)
    if model.stability === :contractive
        cell = Cell(model.cell, flat, h, pool)
        scaled_back! = contract!(cell.weights, model.contraction, pool)
        return cell, (to_own, to_flat) -> scaled_back!(cut(to_flat, model.cell.shapes)[1:2:end])
    end
    model.cell.is_monotone || return Cell(model.cell, flat, h, pool), (to_own, to_flat) -> nothing
    cell = Cell(model.cell, acting_cell(model, flat), h, pool)
    function monotone_back!(to_own, to_flat)
        a, _, _ = cut(flat, model.cell_shapes)
        to_a, to_b, to_bias = cut(to_own, model.cell_shapes)
        g, to_bias[:] = cut(to_flat, model.cell.shapes)
        mul!(to_a, a, g .+ g', -1, 0)
        to_b .= g .- g'
        return nothing
    end
    return cell, monotone_back!
end

"""The value of a network of one layer or none."""
function dense(network::Network, flat, v, pool)
    isempty(network.layers) && return v
    weight, bias = cut(flat, network.shapes)
    out = mul!(like(pool, v, length(bias), size(v, 2)), weight, v)
    activate!(out, identity, bias)
    return out
end

"""Write the gradients of a layer's weight and bias; `row` is that of its value at `v`."""
function weight_gradient!(weight, bias, row, v)
    mul!(weight, row, v')
    sum!(bias, row)
    return nothing
end

"""Write the gradient of a network of one layer or none, and return that of what goes into it."""
function dense_pullback!(gradient, network::Network, flat, row, v, pool)
    isempty(network.layers) && return row
    weight_gradient!(cut(gradient, network.shapes)..., row, v)
    return mul!(borrow_like(pool, v), first(cut(flat, network.shapes))', row)
end

"""
    cell_pullback!(arrays, solver, cell, h, z, g, pool) -> row

Write the gradient in the cell's parameters as they act to the `arrays`, and return that in `h`;
`g` is that in the equilibria `z`, and void afterwards.
"""
function cell_pullback!(arrays, solver::Solver, cell::Cell, h, z, g::Matrix, pool)
    jacobian = Jacobian(cell, z, h, pool)  # after which the cell holds the values of its layers
    row = solver.adjoint === :jfb ? g : solve_adjoint(solver, jacobian, g, pool)
    for i in length(cell.layers):-1:1
        # Those of the Jacobian are void by now.
        i <= n_slopes(cell) && times_slope!(row, cell.activation, cell.layers[i])
        into = i > 1 ? cell.layers[i - 1] : cell.is_monotone ? z : cell.v
        weight_gradient!(arrays[2i - 1], arrays[2i], row, into)
        cell.is_monotone && return row
        row = mul!(borrow_like(pool, into), cell.weights[i]', row)
    end
    return row
end
