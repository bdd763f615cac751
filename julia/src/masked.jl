# The steps of the solvers once more, by broadcasts alone, which write nothing in place: as functions
# that Zygote differentiates, for `adjoint = unrolled`, and as what a GPU can do. A sample that is done
# stays where it is, by a mask. (`newton` is not unrolled: its steps solve linear systems.)

"""The solvers whose steps Zygote differentiates."""
const UNROLLED = filter(!=(:newton), OWN_SOLVERS)

"""
    unroll(solver, cell, flat, h, u0, found) -> (width, n)

Return the states where [`search`](@ref) from `u0` ends, differentiable in `flat`, `h` and `u0` through
its steps; a `u0` that is nothing is f(0, h).
The [`Outcome`](@ref) is put into `found`.
"""
function unroll(solver::Solver, cell::AbstractNetwork, flat, h, u0, found::Base.RefValue{Outcome})
    u = u0 === nothing ? cell(flat, zero(h), h) : u0
    f(u) = cell(flat, u, h)
    fu = f(u)
    step, memory = stepper(solver, f, () -> layer_of(cell, flat), h, u, fu)
    u, fu, n_evals = masked_steps(solver, step, memory, u, fu)
    @ignore_derivatives begin
        found[] = Outcome(u, fu, n_evals .+ (u0 === nothing ? 2 : 1), is_steady(u, fu, solver))
    end
    return u
end

"""
    search_by_masks(solver, cell, h, u0, pool) -> Outcome

The search on a GPU: every sample stops by itself, as on the CPU, but none leaves before the last is
done, because a GPU computes a whole batch in the time of a few columns.
"""
function search_by_masks(solver::Solver, cell::Cell, h, u0, pool)
    f(u) = evaluate!(similar(u), cell, u, h)
    u = u0 === nothing ? f(zero(h)) : u0
    fu = f(u)
    jacobian(u) = linearize(cell, u, h, pool)
    step, memory = solver.name === :newton ? newton_stepper(solver, f, jacobian, pool) :
        stepper(solver, f, () -> layer_of(cell), h, u, fu)
    u, fu, n_evals = masked_steps(solver, step, memory, u, fu)
    return Outcome(u, fu, n_evals .+ (u0 === nothing ? 2 : 1), is_steady(u, fu, solver))
end

search_own(solver::Solver, cell, h::AbstractMatrix, u0, pool) =
    search_by_masks(solver, cell, h, u0, pool)

"""
    masked_steps(solver, step, memory, u, fu) -> (u, fu, n_evals)

Take steps from the states `u` until every sample is done; `n_evals` (n,) are those of the steps.
`step(u, fu, memory, k)` returns what the k-th makes of them.
"""
function masked_steps(solver::Solver, step, memory, u, fu)
    active, n_evals = @ignore_derivatives (goes_on(u, fu, solver), zeros(Int, size(u, 2)))
    for k in 1:(solver.max_steps)
        any(active) || break
        new_u, new_fu, memory = step(u, fu, memory, k)
        row = @ignore_derivatives row_of_bools(u, active)
        u, fu = ifelse.(row, new_u, u), ifelse.(row, new_fu, fu)
        active = @ignore_derivatives begin
            count_evals!(n_evals, active, solver, memory)
            active .& goes_on(u, fu, solver)
        end
    end
    return u, fu, n_evals
end

"""Count what a step takes: of Newton's it is the memory, per sample."""
function count_evals!(n_evals, active, solver, memory)
    solver.name === :newton && return n_evals[active] .+= memory[active]
    return n_evals[active] .+= solver.name === :tsit5 ? 6 : 1
end

"""The values of a mask (n,) as a row (1, n) where `a` is."""
row_of_bools(a, mask) = copyto!(similar(a, Bool, 1, length(mask)), Vector{Bool}(mask))

function stepper(solver::Solver, f, layer, h, u, fu)
    name = solver.name
    name === :fixed_point && return ((u, fu, _, k) -> (fu, f(fu), nothing)), nothing
    name === :anderson && return ((u, fu, memory, k) -> anderson_step(f, u, fu, memory)), ()
    name === :broyden && return ((u, fu, memory, k) -> broyden_step(f, u, fu, memory, k)), ()
    name === :tsit5 && return tsit5_stepper(solver, f, u, fu)
    return splitting_stepper(layer()..., h, u)
end

"""Weight, bias and activation of a cell of one layer, the monotone one."""
layer_of(cell::Network, flat) = (cut(flat, cell.shapes)..., ACTIVATIONS[cell.activation])
layer_of(cell::Cell) = (only(cell.weights), only(cell.biases), cell.σ)
function layer_of(::AbstractNetwork, _)
    throw(
        ArgumentError(
            "adjoint=\"unrolled\" with solver=\"peaceman_rachford\" needs a cell of one Dense layer. " *
                "Take another solver, or adjoint=\"implicit\".",
        ),
    )
end

"""The step of [`PeacemanRachford`](@ref)."""
function splitting_stepper(weight, bias, act, h, u)
    resolvent = resolvent_of(weight)
    function step(u, fu, w, k)
        v = 2 .* fu .- w
        z = resolvent * (v .+ h .+ bias)
        w = 2 .* z .- v
        return z, act.(w), w
    end
    return step, weight * u .+ h .+ bias
end

"""``(2 I - W)^{-1}``; of a GPU's matrix, which is small, by the CPU."""
resolvent_of(weight) = copyto!(similar(weight), inv(2I - Array(weight)))

function ChainRulesCore.rrule(::typeof(resolvent_of), weight)
    resolvent = resolvent_of(weight)
    resolvent_pullback(row) = (NoTangent(), resolvent' * unthunk(row) * resolvent')
    return resolvent, resolvent_pullback
end

"""The step of [`FollowODE`](@ref); the lengths of the steps are not differentiated."""
function tsit5_stepper(solver, f, u, fu)
    function step(u, fu, (dt, last_error), k)
        slopes = (fu .- u,)
        new_u, new_fu = u, fu
        for row in TSIT5_STAGES
            new_u = u .+ dt .* weighted(row, slopes)
            new_fu = f(new_u)
            slopes = (slopes..., new_fu .- new_u)
        end
        accepted, memory = @ignore_derivatives begin
            error_of = weighted(TSIT5_ERROR, slopes)
            controlled(solver, u, new_u, first(slopes), error_of, dt, last_error)
        end
        return ifelse.(accepted, new_u, u), ifelse.(accepted, new_fu, fu), memory
    end
    return step, @ignore_derivatives first_steps(solver, u, fu)
end

"""The lengths of the first steps and their errors, as rows (1, n): see [`StepControl`](@ref)."""
function first_steps(solver, u::AbstractMatrix{T}, fu) where {T}
    abstol, reltol = T(solver.ode_abstol), T(solver.ode_reltol)
    scaled = (fu .- u) ./ (abstol .+ reltol .* abs.(u))
    size_of = sqrt.(dots(scaled, scaled) ./ T(size(u, 1)))
    dt = (T(0.01) ./ max.(size_of, T(1.0e-10))) .^ T(1 / 5)
    return dt, fill!(similar(dt), T(FIRST_ERROR))
end

"""
    controlled(solver, u, new_u, du, error_of, dt, last_error) -> (accepted, (dt, last_error))

Which steps from `u` are accepted, and the lengths of the next, as [`control!`](@ref) has them.
"""
function controlled(solver, u::AbstractMatrix{T}, new_u, du, error_of, dt, last_error) where {T}
    abstol, reltol = T(solver.ode_abstol), T(solver.ode_reltol)
    scaled = @. dt * error_of / (abstol + reltol * max(abs(u), abs(new_u)))
    e = sqrt.(dots(scaled, scaled) ./ T(size(u, 1)))
    share = sqrt.(dots(error_of, error_of)) ./ (T(SHARE_OF_DU) .* sqrt.(dots(du, du)))
    e = max.(e, dt .* share)
    e = ifelse.(isfinite.(e), max.(e, T(1.0e-12)), T(1.0e12))
    accepted = e .<= one(T)
    factor = T(SAFETY) .* e .^ -T(BETA1)
    taken = clamp.(factor .* last_error .^ T(BETA2), T(MIN_FACTOR), T(MAX_FACTOR))
    refused = clamp.(factor, T(MIN_FACTOR), one(T))
    last_error = ifelse.(accepted, max.(e, T(FIRST_ERROR)), last_error)
    return accepted, (dt .* ifelse.(accepted, taken, refused), last_error)
end

"""
    newton_stepper(solver, f, jacobian, pool)

The step of [`Newton`](@ref). The memory is what the last step took, per sample.
"""
function newton_stepper(solver, f, jacobian, pool)
    function step(u, fu, _, k)
        todo = goes_on(u, fu, solver)
        # Of a sample that is done there is nothing to solve.
        g = ifelse.(row_of_bools(u, todo), fu .- u, zero(eltype(u)))
        n_evals = zeros(Int, size(u, 2))
        along = solve_linear!(similar(g), n_evals, jacobian(u), g, FORCING, false, pool)
        size_of_g, scale, start = dots(g, g), one(eltype(u)), u
        for halvings in 0:HALVINGS
            any(todo) || break
            n_evals[todo] .+= 1
            new_u = start .+ scale .* along
            new_fu = f(new_u)
            gap = new_fu .- new_u
            # (Not "larger": a comparison with nan is false.) The last one is taken as it is.
            smaller = halvings == HALVINGS ? copy(todo) :
                todo .& Vector{Bool}(vec(Array(dots(gap, gap) .< size_of_g)))
            row = row_of_bools(u, smaller)
            u, fu = ifelse.(row, new_u, u), ifelse.(row, new_fu, fu)
            todo .&= .!smaller
            scale /= 2
        end
        return u, fu, n_evals
    end
    return step, nothing
end

"""The sum of the slopes by their coefficients."""
function weighted(row, slopes)
    T = eltype(first(slopes))
    total = T(first(row)) .* first(slopes)
    for (factor, slope) in zip(Base.tail(row), Base.tail(slopes))
        total = total .+ T(factor) .* slope
    end
    return total
end

"""
The step of [`Anderson`](@ref). The memory is its window, the newest first: changes of f(u), of
g = f(u) - u, and the products of those with g, (1, n).
"""
function anderson_step(f, u, fu, memory)
    new_u = minus_all(fu, map(last, memory), map(first, memory))
    new_fu = f(new_u)
    keep = @ignore_derivatives begin
        plain = fill!(similar(u, Bool, 1, size(u, 2)), true)
        foreach(((_, _, along),) -> plain .&= iszero.(along), memory)
        is_taken(u, fu, new_u, new_fu, plain)
    end
    new_u, new_fu = ifelse.(keep, new_u, u), ifelse.(keep, new_fu, fu)
    g = new_fu .- new_u
    df, dg = new_fu .- fu, g .- (fu .- u)
    nothing_there = @ignore_derivatives zero(dots(u, u))
    along = map(memory) do (_, q, a)
        used = @ignore_derivatives keep .& .!iszero.(a)
        ifelse.(used, dots(q, g), nothing_there)
    end
    # dg is the change of g, so its products with the others are the change of theirs with g.
    overlap = map(along, memory) do new, (_, _, a)
        ifelse.((@ignore_derivatives .!iszero.(new)), new .- a, nothing_there)
    end
    dg = minus_all(dg, overlap, map(m -> m[2], memory))
    df = minus_all(df, overlap, map(first, memory))
    left = dots(dg, dg)
    good = @ignore_derivatives keep .& (left .> (10 * eps(eltype(u)))^2 .* dots(fu .- u, fu .- u))
    scale = ifelse.(good, inv.(sqrt.(ifelse.(good, left, one(eltype(u))))), nothing_there)
    df, dg = df .* scale, dg .* scale
    older = map((m, a) -> (m[1], m[2], a), memory, along)
    memory = ((df, dg, dots(dg, g)), older[1:min(end, ANDERSON_WINDOW - 1)]...)
    return new_u, new_fu, memory
end

function minus_all(v, factors, vectors)
    for (factor, vector) in zip(factors, vectors)
        v = v .- factor .* vector
    end
    return v
end

"""Whether each sample's step is to be taken, (1, n): it is better, or `plain`."""
function is_taken(u, fu, new_u, new_fu, plain)
    better = dots(new_fu .- new_u, new_fu .- new_u) .<= dots(fu .- u, fu .- u)
    return better .| plain
end

"""The step of [`Broyden`](@ref). The memory is the updates, each `left` and `right` (width, n)."""
function broyden_step(f, u, fu, memory, k)
    g = fu .- u
    du = .-broyden_inverse(memory, g)
    new_u = u .+ du
    new_fu = f(new_u)
    keep = @ignore_derivatives is_taken(u, fu, new_u, new_fu, all(du .== g; dims = 1))
    if (k - 1) % BROYDEN_RANK == 0
        memory = ()
    end
    zeros_of = zero(u)
    # Where the step is not taken, numbers that do no harm stand in.
    dg = ifelse.(keep, (new_fu .- new_u) .- g, zeros_of)
    du = ifelse.(keep, du, zeros_of)
    direction = broyden_inverse(map(reverse, memory), du)
    size_of = dots(direction, dg)
    useful = @ignore_derivatives keep .& (size_of .!= 0)
    gain = (du .- broyden_inverse(memory, dg)) ./ ifelse.(useful, size_of, one(eltype(u)))
    left, right = ifelse.(useful, gain, zeros_of), ifelse.(useful, direction, zeros_of)
    kept = map(pair -> map(a -> ifelse.(keep, a, zeros_of), pair), memory)
    return ifelse.(keep, new_u, u), ifelse.(keep, new_fu, fu), (kept..., (left, right))
end

function broyden_inverse(memory, v)
    out = .-v
    for (left, right) in memory
        out = out .+ left .* dots(right, v)
    end
    return out
end
