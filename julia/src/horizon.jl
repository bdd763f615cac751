# The finite horizon: u(T) of the same field by DiffEqFlux's NeuralODE, differentiable.

"""
    Augmented(cell)

The field over the state augmented by h: d(u, h)/dt = (f(u, h) - u, 0), as a layer for `NeuralODE`.
Being part of the initial state, h gets its gradient there; the parameters are the cell's alone.
"""
struct Augmented <: AbstractLuxLayer
    cell::Network
    n_evals::Base.RefValue{Int}
end

function (layer::Augmented)(v::AbstractMatrix, flat, st)
    @ignore_derivatives layer.n_evals[] += 1
    width = size(v, 1) ÷ 2
    u, h = v[1:width, :], v[(width + 1):end, :]
    dv = vcat(layer.cell(flat, u .+ h) .- u, zero(h))
    return dv::typeof(v), st
end

"""
    integrate(model, solver, flat, h, time, found) -> (width, n)

Return u(time) from u(0) = f(0, h) for h (width, n); the [`Outcome`](@ref) is put into `found`.

`converged` says that the integration reached `time` within `max_steps` and is finite. What `found`
holds are the states that count: where they are not finite, the returned ones need not be alike.
"""
function integrate(model, solver::Solver, flat, h::AbstractMatrix{T}, time, found) where {T}
    u0 = model.cell(flat, h)
    field, ode = @ignore_derivatives begin
        field = Augmented(model.cell, Ref(0))
        ode = NeuralODE(
            field, (zero(T), T(time)), Tsit5();
            abstol = T(solver.ode_abstol), reltol = T(solver.ode_reltol),
            maxiters = solver.max_steps, save_everystep = false, save_start = false,
            # A sample that overflows must not stop the others, which share its steps.
            internalnorm = finite_norm, unstable_check = never_unstable, verbose = None(),
        )
        (field, ode)
    end
    sol = first(ode(vcat(u0, h), flat, NamedTuple()))
    u = last(sol.u)[1:size(h, 1), :]
    @ignore_derivatives found[] = reached(
        model, solver, flat, h, u, sol, field.n_evals[] + 2, time
    )
    return u
end

function reached(model, solver, flat, h, u, sol, n_evals, time)
    n = size(h, 2)
    if !(successful_retcode(sol) || sol.retcode === ReturnCode.MaxIters)
        return broken_down(model, solver, flat, h, u, n_evals, time)
    end
    converged = successful_retcode(sol) ? finite_columns(u) : fill(false, n)
    fu = model.cell(flat, u .+ h)
    return Outcome(u, fu, fill(n_evals, n), converged, fill(Float64(time), n))
end

"""
The outcome where the step size broke down, as it does when a state nears the largest number: not a
finite state then, though the integration stopped at one. In a batch that may be one sample's doing,
so they are integrated one by one.
"""
function broken_down(model, solver, flat, h, u, n_evals, time)
    n = size(h, 2)
    if n > 1
        found = Ref{Outcome}()
        outcomes = map(1:n) do j
            integrate(model, solver, flat, h[:, j:j], time, found)
            found[]
        end
        outcome = together(outcomes)
        all(finite_columns(outcome.u)) || return outcome
    end
    lost = fill!(similar(u), NaN)
    return Outcome(lost, lost, fill(n_evals, n), fill(false, n), fill(Float64(time), n))
end

"""The root mean square of OrdinaryDiffEq's step control, of the finite entries."""
finite_norm(u::Number, _) = abs(u)
function finite_norm(u::AbstractArray{T}, _) where {T}
    total = sum(x -> isfinite(x) ? abs2(x) : zero(T), u; init = zero(T))
    return sqrt(total / max(length(u), 1))
end

never_unstable(_...) = false
