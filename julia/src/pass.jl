# A batch's loss and its gradient by hand.
#
# An epoch of MNIST takes 0.86 of the CPU time of the general way, Zygote through `batch_loss`, with
# `DEQClassifier()`, and 0.87 with the contractive cell of the post: it makes fewer arrays as long as
# theta, and evaluates the cell once less. And Zygote takes a second to load. Tested against the
# general way.

"""Whether [`pass_by_hand`](@ref) knows all that the session's loss is made of."""
function goes_by_hand(session::Session, depth)
    (; model, solver) = session
    return depth > 0 || model.horizon === nothing && solver.adjoint !== :unrolled
end

"""
    pass_by_hand(session, x, target, weight, probe, tape, depth) -> (loss, back)

Return what `Zygote.pullback` of [`batch_loss`](@ref) does, `back` being a function of nothing. The
gradient that `back` returns and the tape's outcome are of the session's pool.
"""
function pass_by_hand(session::Session{T}, x, target, weight, probe, tape::Tape, depth) where {T}
    (; model, training, theta, pool) = session
    encoder, own, decoder, init = parts(model, theta)
    h, back_to_encoder! = with_way_back(model.encoder, encoder, x, pool)
    cell, n_acting, back_to_own! = acting(model.cell, model, own, h, pool)
    u0, back_to_init! = guess_with_way_back(model, init, h, pool)
    outcome, back_to_cell! = states_with_way_back(session, cell, h, u0, depth)
    tape.found[] = outcome
    counts = depth > 0 ? finite_columns(outcome.u) : outcome.converged
    kept = row_like(h, counts)
    w = tape.weight[] = row_like(h, weight .* counts)
    total = sum(w)
    u = borrow_like(pool, outcome.u)
    u .= kept .* outcome.u
    output, back_to_decoder! = with_way_back(model.decoder, decoder, u, pool)
    loss, to_output = loss_and_slope(training.loss, output, target, w)
    penalties = Penalties(session, cell, u, h, u0, probe, w)
    loss += penalties.value
    decay = T(training.alpha) / total
    if training.alpha != 0
        loss += decay / 2 * squares_of_weights(session.is_weight, theta)
    end
    function back()
        gradient = fill!(borrow_like(pool, theta), 0)
        to_encoder, to_own, to_decoder, to_init = parts(model, gradient)
        to_u = borrow_like(pool, u)
        to_u .= kept .* back_to_decoder!(to_decoder, to_output, true)
        to_flat = n_acting == length(to_own) ? to_own : fill!(borrow(pool, T, n_acting), 0)
        to_guess = add_guess!(to_u, penalties)
        to_h, to_start = back_to_cell!(to_flat, to_u)
        to_h = add_jacobian!(to_flat, to_h, penalties)
        to_guess = both(to_guess, to_start)
        to_guess === nothing || (to_h = both(to_h, back_to_init!(to_init, to_guess, true)))
        back_to_own!(to_own, to_flat)
        back_to_encoder!(to_encoder, to_h, false)
        if training.alpha != 0
            gradient .+= decay .* session.is_weight .* theta
        end
        return gradient
    end
    return loss, back
end

"""The sum of two arrays, of which either may be nothing."""
both(a, b) = a === nothing ? b : b === nothing ? a : a .+ b

"""[`weight_squares`](@ref), on the CPU without an array."""
squares_of_weights(is_weight, theta) = weight_squares(is_weight, theta)
function squares_of_weights(is_weight::Vector{T}, theta::Vector{T}) where {T}
    total = zero(T)
    @inbounds @simd for i in eachindex(is_weight, theta)
        total += is_weight[i] * abs2(theta[i])
    end
    return total
end

"""
    acting(network, model, flat, h, pool) -> (cell, n_acting, back!)

Return the cell with its weights as they act, their number, and `back!(to_own, to_flat)`, which
writes the gradient in the parameters as they are trained, where `to_flat` is that in those that act.
The two are one array, where there are as many of them.
"""
function acting(network::Network, model::Model, flat, h, pool)
    n = network.n_parameters
    if model.stability === :contractive
        cell = Cell(network, flat, h, pool)
        scaled_back! = contract!(cell.weights, model.contraction, pool)
        return cell, n, (to_own, to_flat) -> scaled_back!(cut(to_flat, network.shapes)[1:2:end])
    end
    network.is_monotone || return Cell(network, flat, h, pool), n, (to_own, to_flat) -> nothing
    cell = Cell(network, acting_cell(model, flat), h, pool)
    function monotone_back!(to_own, to_flat)
        a, _, _ = cut(flat, model.cell_shapes)
        to_a, to_b, to_bias = cut(to_own, model.cell_shapes)
        g, to_bias[:] = cut(to_flat, network.shapes)
        mul!(to_a, a, g .+ g', -one(eltype(g)), false)
        to_b .= g .- g'
        return nothing
    end
    return cell, n, monotone_back!
end

"""
    with_way_back(network, flat, v, pool) -> (value, back!)

Return the value at `v`, and `back!(gradient, row, wants_row)`, which writes the gradient in `flat` and
returns that in `v`, or anything where it is not wanted. A [`Network`](@ref) has one layer or none.
"""
function with_way_back(network::Network, flat, v, pool)
    isempty(network.shapes) && return v, (gradient, row, wants_row) -> row
    weight, bias = cut(flat, network.shapes)
    value = mul!(like(pool, v, length(bias), size(v, 2)), weight, v)
    activate!(value, identity, bias)
    function back!(gradient, row, wants_row)
        weight_gradient!(cut(gradient, network.shapes)..., row, v)
        return wants_row ? mul!(borrow_like(pool, v), weight', row) : nothing
    end
    return value, back!
end

"""The first guess, nothing for f(0, h); with the way back for one that has weights."""
function guess_with_way_back(model::Model, init, h, pool)
    model.init === :cell && return nothing, nothing
    model.init === :zero && return fill!(borrow_like(pool, h), 0), (gradient, row, wants_row) -> nothing
    return with_way_back(model.init, init, h, pool)
end

"""Write the gradients of a layer's weight and bias; `row` is that of its value at `v`."""
function weight_gradient!(weight, bias, row, v)
    mul!(weight, row, v')
    sum!(bias, row)
    return nothing
end

"""
    states_with_way_back(session, cell, h, u0, depth) -> (outcome, back!)

Return the equilibria or, with a `depth` > 0, what so many steps u <- f(u, h) make of u(0), and
`back!(to_flat, row)`, which adds the gradient in the cell's parameters as they act to `to_flat`, and
returns those in `h` and in `u0`, nothing where it has none. The `row` is void afterwards.
"""
function states_with_way_back(session::Session, cell, h, u0, depth)
    (; solver, pool) = session
    depth > 0 && return steps_with_way_back(cell, h, u0, depth, pool)
    outcome, solve! = search_with_adjoint(session, cell, h, u0)
    function back!(to_flat, row)
        solver.adjoint === :jfb || (row = solve!(row))
        _, to_h = pull_at!(to_flat, cell, h, outcome.u, row, pool)
        return to_h, nothing
    end
    return outcome, back!
end

function steps_with_way_back(cell, h::AbstractMatrix, u0, depth, pool)
    n = size(h, 2)
    passed = [borrow_like(pool, h)]
    start!(only(passed), cell, h, u0)
    for _ in 1:(depth + 1)
        push!(passed, evaluate!(borrow_like(pool, h), cell, last(passed), h))
    end
    u, fu = passed[end - 1], passed[end]
    n_evals = depth + (u0 === nothing ? 2 : 1)
    counts = Vector{Bool}(finite_columns(u) .& finite_columns(fu))
    outcome = Outcome(u, fu, fill(n_evals, n), counts)
    function back!(to_flat, row)
        to_h = zero(h)
        for k in depth:-1:1
            row, more = pull_at!(to_flat, cell, h, passed[k], row, pool)
            to_h .+= more
        end
        u0 === nothing || return to_h, row
        _, more = pull_at!(to_flat, cell, h, zero(h), row, pool)
        return to_h .+ more, nothing
    end
    return outcome, back!
end

"""
    pull_at!(to_flat, cell, h, u, row, pool) -> (to_u, to_h)

Add ``\\partial f / \\partial\\theta^T`` times `row` to `to_flat` and return its products with the
derivatives in `u` and in `h`, at `u` and `h`. The `row` is void afterwards.
"""
function pull_at!(to_flat, cell::Cell, h, u, row, pool)
    forward!(cell, u, h)
    arrays = cut(to_flat, cell.shapes)
    for i in length(cell.layers):-1:1
        i <= n_slopes(cell) && times_slope!(row, cell.activation, cell.layers[i])
        into = i > 1 ? cell.layers[i - 1] : cell.is_monotone ? u : cell.v
        mul!(arrays[2i - 1], row, into', true, true)
        arrays[2i] .+= vec(sum(row; dims = 2))
        to_h = row
        row = mul!(borrow_like(pool, into), cell.weights[i]', row)
        cell.is_monotone && return row, to_h
    end
    return row, row
end
