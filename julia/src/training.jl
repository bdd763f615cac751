# The loss of one batch with its gradient, and the optimiser's step.

"""What a pass over a batch leaves beside its loss."""
struct Tape
    found::Base.RefValue{Outcome}
    weight::Base.RefValue{Any}  # (1, n): the weights that counted
end

Tape() = Tape(Ref{Outcome}(), Ref{Any}())

"""
    batch_loss(theta, session, x, target, weight, probe, tape)

Return the loss of one batch, penalties included.

A sample that has not converged does not count, but with the adjoint `unrolled`, whose gradient is
that of the iterations wherever they ended.
"""
function batch_loss(theta, session::Session, x, target, weight, probe, tape::Tape)
    (; model, solver, training) = session
    encoder, cell, decoder, init = parts(model, theta)
    h = encode(model.encoder, encoder, x)
    flat = acting_cell(model, cell)
    u0 = start_of(model, flat, init, h)
    u = states(model, solver, flat, h, u0, tape.found)
    kept, w = @ignore_derivatives begin
        outcome = tape.found[]
        counts = is_unrolled(session) ? finite_columns(outcome.u) : outcome.converged
        tape.weight[] = row_like(u, weight .* counts)
        (row_like(u, counts), tape.weight[])
    end
    u = kept .* u  # large states of no weight must not overflow the loss
    loss = loss_value(training.loss, model.decoder(decoder, u), target, w)
    if training.alpha != 0
        squares = weight_squares(session.is_weight, theta)
        loss += eltype(theta)(training.alpha / 2) * squares / sum(w)
    end
    if learns_init(model)
        squares = sum(abs2, u .- u0; dims = 1)
        loss += eltype(theta)(training.init_penalty / model.width) * sum(w .* squares) / sum(w)
    end
    if model.stability === :jacobian && training.jacobian_penalty != 0
        mean = sum(w .* jacobian_estimate(model.cell, flat, u, h, probe)) / sum(w)
        loss += eltype(theta)(training.jacobian_penalty / model.width) * mean
    end
    return loss
end

is_unrolled(session) = session.model.horizon === nothing && session.solver.adjoint === :unrolled

"""
    pass_by_zygote(session, x, target, weight, probe, tape)

The same as [`pass_by_hand`](@ref), for every session: a method of the extension for Zygote.
"""
function pass_by_zygote end

"""
    batch_gradient(session, x, target, weight, probe, depth)

Return loss, gradient (like theta) and a report of one batch: `weight`, the sum of those that
counted, and `n_evals`, `residual` and `converged` of the samples that have a weight.

Samples whose state is not finite would turn every gradient into NaN, and those that do not reach a
finite horizon hold up the others: the batch is then passed once more without them.
"""
function batch_gradient(session::Session{T}, x, target, weight, probe, depth) where {T}
    rows = findall(>(0), weight)
    n_evals, converged = zeros(Int, length(weight)), fill(false, length(weight))
    residuals = zeros(T, length(weight))
    active = copy(rows)
    loss, gradient, total = zero(T), nothing, zero(T)
    while !isempty(active)
        tape = Tape()
        everyone = length(active) == length(weight)
        batch = everyone ? (x, target, weight) :
            (x[:, active], samples(target, active), weight[active])
        value, back = goes_by_hand(session, depth) ? pass_by_hand(session, batch..., probe, tape, depth) :
            pass_by_zygote(session, batch..., probe, tape)
        outcome = tape.found[]
        n_evals[active] .+= outcome.n_evals
        converged[active], residuals[active] = outcome.converged, residual(outcome)
        finite = finite_columns(outcome.u) .& finite_columns(outcome.fu)
        passed = session.model.horizon === nothing ? finite : finite .& outcome.converged
        active = active[passed]
        all(passed) || continue
        total = sum(tape.weight[])
        if total > 0
            loss, gradient = value, back()
        end
        break
    end
    gradient === nothing && (gradient = zero(session.theta))
    if !session.training.train_encoder
        view(gradient, encoder_range(session.model)) .= 0
    end
    report = (
        weight = total, n_evals = n_evals[rows], residual = residuals[rows],
        converged = converged[rows],
    )
    return loss, gradient, report
end

"""
    train_batch!(session, indices, probe, depth = 0)

Take one optimiser step on the loaded samples `indices` (from 1), with `probe` (width,) for the
Jacobian penalty. A batch that no sample of counts changes nothing. With a `depth` the state is not an
equilibrium but what so many steps u <- f(u, h) make.

Return `loss` and `weight` (the sum of those that counted), `grad_norm`, `n_evals` (summed over the
samples), `n_samples` (those that have a weight), `worst_residual` and `n_failed`.
"""
function train_batch!(session::Session{T}, indices::AbstractVector{<:Integer}, probe, depth::Int = 0) where {T}
    session.data === nothing && throw(ArgumentError("There is no data yet: call load_data! first."))
    x, target, weight = session.data
    indices = Vector{Int}(indices)
    rewind!(session.pool)
    loss, gradient, report = batch_gradient(
        session, batch_of(x, indices, session), samples(target, indices), weight[indices],
        to_device(session.device, convert(Array{T}, probe)), depth,
    )
    report.weight > 0 && step!(session, gradient)
    return (
        loss = Float64(loss), weight = Float64(report.weight),
        grad_norm = Float64(norm(gradient)), n_evals = sum(report.n_evals),
        n_samples = length(report.n_evals), worst_residual = worst(report.residual),
        n_failed = count(!, report.converged),
    )
end

"""The columns of those indices, in the session's element type."""
batch_of(x, indices, ::Session{T}) where {T} = T.(x[:, indices])
function batch_of(x::Matrix, indices, session::Session{T}) where {T}
    batch = borrow(session.pool, T, size(x, 1), length(indices))
    for (to, from) in enumerate(indices)
        copyto!(view(batch, :, to), view(x, :, from))
    end
    return batch
end

samples(values::AbstractMatrix, indices) = values[:, indices]
samples(classes::AbstractVector, indices) = classes[indices]

worst(residuals) = Float64(maximum(r -> isnan(r) ? oftype(r, Inf) : r, residuals; init = 0))

function step!(session::Session, gradient)
    frozen = session.training.train_encoder ? (1:0) : encoder_range(session.model)
    kept = isempty(frozen) ? nothing : session.theta[frozen]  # gradient 0, but Adam may remember another
    if is_on_host(session.theta)
        adam!(session.optimizer, session.theta, gradient)
    else
        session.optimizer, session.theta =
            Optimisers.update!(session.optimizer, session.theta, gradient)
    end
    kept === nothing || (session.theta[frozen] = kept)
    session.count += 1
    return nothing
end

"""
    loss_and_grad(session, x, target, weight, probe, depth = 0) -> (loss, gradient)

Return the loss of one batch, penalties included, and its gradient, a vector like the session's
`theta`. The gradient of an encoder that is not trained is zero. For the `depth` see
[`train_batch!`](@ref).
"""
function loss_and_grad(session::Session{T}, x, target, weight, probe, depth::Int = 0) where {T}
    move(array) = to_device(session.device, convert(Array{T}, array))
    rewind!(session.pool)
    loss, gradient, _ = batch_gradient(
        session, move(x), to_device(session.device, as_target(T, target)), convert(Array{T}, weight),
        move(probe), depth,
    )
    return Float64(loss), gradient
end
