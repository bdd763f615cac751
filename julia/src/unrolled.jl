# The steps of the solvers once more, as a function that Zygote differentiates: `adjoint = unrolled`.
# Nothing is written in place. (`newton` is not unrolled: its steps solve linear systems.)

"""The solvers whose steps are known here."""
const UNROLLED = filter(!=(:newton), OWN_SOLVERS)

"""
    unroll(solver, cell, flat, h, u0, found) -> (width, n)

Return the states where [`search`](@ref) from `u0` ends, differentiable in `flat`, `h` and `u0` through
its steps; a `u0` that is nothing is f(0, h).
The [`Outcome`](@ref) is put into `found`.
"""
function unroll(solver::Solver, cell::AbstractNetwork, flat, h, u0, found::Base.RefValue{Outcome})
    u = u0 === nothing ? cell(flat, zero(h), h) : u0
    fu = cell(flat, u, h)
    step, memory = stepper(solver, cell, flat, h, u, fu)
    active, n_steps = @ignore_derivatives (goes_on(u, fu, solver), zeros(Int, size(u, 2)))
    for k in 1:(solver.max_steps)
        any(active) || break
        new_u, new_fu, memory = step(u, fu, memory, k)
        row = @ignore_derivatives reshape(active, 1, :)
        u, fu = ifelse.(row, new_u, u), ifelse.(row, new_fu, fu)
        active = @ignore_derivatives begin
            n_steps[active] .+= 1
            active .& goes_on(u, fu, solver)
        end
    end
    @ignore_derivatives begin
        n_evals = (u0 === nothing ? 2 : 1) .+ (solver.name === :tsit5 ? 6 : 1) .* n_steps
        found[] = Outcome(u, fu, n_evals, is_steady(u, fu, solver))
    end
    return u
end

"""Whether the search goes on, per sample."""
goes_on(u, fu, solver::Solver) = finite_columns(fu) .& .!is_steady(u, fu, solver)

function stepper(solver::Solver, cell, flat, h, u, fu)
    f(u) = cell(flat, u, h)
    name = solver.name
    name === :fixed_point && return ((u, fu, _, k) -> (fu, f(fu), nothing)), nothing
    name === :anderson && return ((u, fu, memory, k) -> anderson_step(f, u, fu, memory)), ()
    name === :broyden && return ((u, fu, memory, k) -> broyden_step(f, u, fu, memory, k)), ()
    name === :tsit5 && return tsit5_stepper(solver, f, u, fu)
    cell isa Network || throw(
        ArgumentError(
            "adjoint=\"unrolled\" with solver=\"peaceman_rachford\" needs a cell of one Dense layer. " *
                "Take another solver, or adjoint=\"implicit\".",
        ),
    )
    return splitting_stepper(cell, flat, h, u)
end

"""The step of [`PeacemanRachford`](@ref)."""
function splitting_stepper(cell, flat, h, u)
    weight, bias = cut(flat, cell.shapes)
    resolvent = inv(2I - weight)
    act = ACTIVATIONS[cell.activation]
    function step(u, fu, w, k)
        v = 2 .* fu .- w
        z = resolvent * (v .+ h .+ bias)
        w = 2 .* z .- v
        return z, act.(w), w
    end
    return step, weight * u .+ h .+ bias
end

"""The step of [`FollowODE`](@ref); the lengths of the steps are not differentiated."""
function tsit5_stepper(solver, f, u, fu)
    control = @ignore_derivatives StepControl(solver, u, fu)
    function step(u, fu, _, k)
        dt = @ignore_derivatives reshape(copy(control.dt), 1, :)
        slopes = (fu .- u,)
        new_u, new_fu = u, fu
        for row in TSIT5_STAGES
            new_u = u .+ dt .* weighted(row, slopes)
            new_fu = f(new_u)
            slopes = (slopes..., new_fu .- new_u)
        end
        accepted = @ignore_derivatives begin
            error_of = weighted(TSIT5_ERROR, slopes)
            is_accepted = [
                control!(control, map(a -> view(a, :, j), (u, new_u, slopes[1], error_of))..., j)
                    for j in axes(u, 2)
            ]
            reshape(is_accepted, 1, :)
        end
        return ifelse.(accepted, new_u, u), ifelse.(accepted, new_fu, fu), nothing
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

dots(a, b) = sum(a .* b; dims = 1)

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
