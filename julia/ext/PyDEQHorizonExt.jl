# The finite horizon: u(T) of the same field by DiffEqFlux's NeuralODE, differentiable.
module PyDEQHorizonExt

using ChainRulesCore: @ignore_derivatives
using DiffEqFlux: NeuralODE
using LuxCore: AbstractLuxLayer
using OrdinaryDiffEqTsit5: Tsit5
using PyDEQ: AbstractNetwork, ODE_METHODS, Outcome, PyDEQ, Solver, finite_columns, integrate, never_unstable,
    ode_algorithm, together
using SciMLBase: ReturnCode, successful_retcode
using SciMLLogging: None

"""
    Augmented(cell)

The field over the state augmented by h: d(u, h)/dt = (f(u, h) - u, 0), as a layer for `NeuralODE`.
Being part of the initial state, h gets its gradient there; the parameters are the cell's alone.
"""
struct Augmented <: AbstractLuxLayer
    cell::AbstractNetwork
    n_evals::Base.RefValue{Int}
end

function (layer::Augmented)(v::AbstractMatrix, flat, st)
    @ignore_derivatives layer.n_evals[] += 1
    width = size(v, 1) ÷ 2
    u, h = v[1:width, :], v[(width + 1):end, :]
    dv = vcat(layer.cell(flat, u, h) .- u, zero(h))
    return dv::typeof(v), st
end

function PyDEQ.integrate(model, solver::Solver, flat, h::AbstractMatrix{T}, u0, found) where {T}
    time = model.horizon
    field, ode = @ignore_derivatives begin
        field = Augmented(model.cell, Ref(0))
        ode = NeuralODE(
            field, (zero(T), T(time)), integrator_of(solver);
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
        model, solver, flat, h, u0, u, sol, field.n_evals[] + 2
    )
    return u
end

integrator_of(solver::Solver) =
    solver.name in ODE_METHODS ? ode_algorithm(Val(solver.name)) : Tsit5()

"""
The outcome of an integration. Where it failed for a batch, whose samples share its steps, that may
be one sample's doing: so they are integrated one by one to see which can reach the end.
"""
function reached(model, solver, flat, h, u0, u, sol, n_evals)
    n = size(h, 2)
    if successful_retcode(sol)
        return Outcome(u, model.cell(flat, u, h), fill(n_evals, n), finite_columns(u))
    elseif n > 1
        outcome = one_by_one(model, solver, flat, h, u0)
        # Together they do not get there, and what came back of that is not to be used.
        all(outcome.converged) && fill!(outcome.converged, false)
        return outcome
    end
    # The step size breaks down when a state nears the largest number: it is then not finite.
    u = sol.retcode === ReturnCode.MaxIters ? u : fill!(similar(u), NaN)
    return Outcome(u, model.cell(flat, u, h), fill(n_evals, n), fill(false, n))
end

function one_by_one(model, solver, flat, h, u0)
    found = Ref{Outcome}()
    outcomes = map(axes(h, 2)) do j
        integrate(model, solver, flat, h[:, j:j], u0[:, j:j], found)
        found[]
    end
    return together(outcomes)
end

"""The root mean square of OrdinaryDiffEq's step control, of the finite entries."""
finite_norm(u::Number, _) = abs(u)
function finite_norm(u::AbstractArray{T}, _) where {T}
    total = sum(x -> isfinite(x) ? abs2(x) : zero(T), u; init = zero(T))
    return sqrt(total / max(length(u), 1))
end

end
