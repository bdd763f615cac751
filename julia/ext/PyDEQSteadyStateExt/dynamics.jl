# The steady state by SciML's own solver: SteadyStateDiffEq's `DynamicSS` on one of OrdinaryDiffEq's
# methods. A batch is one ODE, whose samples share their steps. `search` is faster where it has the
# method, because each sample has its own steps, and is tested against this.

"""
    Field(cell, h, n_evals)

The right-hand side f(u, h) - u of the samples `h` (width, n), as SciML's solvers call it: `u` is a flat
vector. It counts its evaluations.
"""
struct Field{C, M <: AbstractMatrix}
    cell::C
    h::M
    n_evals::Base.RefValue{Int}
end

function (field::Field)(du::AbstractVector, u::AbstractVector, _, _)
    field.n_evals[] += 1
    at(a) = reshape(a, size(field.h))
    evaluate!(at(du), field.cell, at(u), field.h)
    du .-= u
    return nothing
end

"""The field as an ODE function that is compiled for its own type."""
ode_function(field::Field) = ODEFunction{true, SciMLBase.FullSpecialize}(field)

function PyDEQ.follow(solver::Solver, cell, h::AbstractMatrix{T}, u0) where {T}
    field = Field(cell, h, Ref(0))
    f(u) = evaluate!(similar(h), cell, u, h)
    u = to_steady_state(solver, field, @something(u0, f(zero(h))), T[], f)
    return outcome_at(solver, u, f(u), field)
end

function outcome_at(solver, u, fu, field)
    return Outcome(u, fu, fill(field.n_evals[] + 2, size(u, 2)), is_steady(u, fu, solver))
end

"""Follow the field from `u0` (width, n); `f` is the cell as a function of the states alone."""
function to_steady_state(solver::Solver, field, u0::AbstractMatrix{T}, p, f) where {T}
    at(u) = reshape(u, size(u0))
    function is_done(u, _, _)
        field.n_evals[] += 1
        fu = f(at(u))
        return all(is_steady(at(u), fu, solver) .| .!finite_columns(fu))
    end
    sol = solve(
        SteadyStateProblem(ode_function(field), vec(u0), p), DynamicSS(ode_algorithm(Val(solver.name)));
        abstol = zero(T), reltol = zero(T),  # the callback ends it
        odesolve_kwargs = (;
            abstol = T(solver.ode_abstol), reltol = T(solver.ode_reltol),
            maxiters = solver.max_steps, save_everystep = false, verbose = None(),
            internalnorm = LargestColumn(size(u0, 1)), unstable_check = never_unstable,
            callback = DiscreteCallback(is_done, terminate!; save_positions = (false, false)),
        ),
    )
    return at(sol.u)
end

"""
    LargestColumn(width)

OrdinaryDiffEq's norm, the root mean square, as the largest of the samples', so that the steps of a
batch are as exact as those of each sample alone. Samples that are not finite are left out.

(A `Function` goes into a GPU's broadcasts as it is.)
"""
struct LargestColumn <: Function
    width::Int
end

(::LargestColumn)(u::Number, _) = abs(u)
function (norm::LargestColumn)(u::AbstractVector{T}, _) where {T}
    squares = vec(sum(abs2, reshape(u, norm.width, :); dims = 1))
    return sqrt(maximum(x -> isfinite(x) ? x : zero(T), squares; init = zero(T)) / norm.width)
end
