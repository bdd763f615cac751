# The search for a steady state of du/dt = f(u, h) - u: what all solvers share.

"""The package's own ways to search, in each of which a sample stops by itself."""
const OWN_SOLVERS = (:tsit5, :anderson, :broyden, :newton, :fixed_point, :peaceman_rachford)

"""Methods of OrdinaryDiffEq's, by which a batch is one ODE: see [`ode_algorithm`](@ref)."""
const ODE_METHODS = (:bs3, :dp5, :vcab3, :rock4)

const SOLVERS = (OWN_SOLVERS..., ODE_METHODS...)
const ADJOINTS = (:implicit, :jfb, :unrolled)

"""What SciML's way to a steady state and its gradient takes."""
const FOR_STEADY_STATES = "SciMLSensitivity, SteadyStateDiffEq"

"""
    Solver(name, abstol, reltol, ode_abstol, ode_reltol, max_steps, adjoint)

How an equilibrium is found and differentiated; the fields are those of Python's
`pydeq.model.spec.SolverSpec`.
"""
struct Solver
    name::Symbol
    abstol::Float64
    reltol::Float64
    ode_abstol::Float64
    ode_reltol::Float64
    max_steps::Int
    adjoint::Symbol
end

function Solver(name, abstol, reltol, max_steps, adjoint)
    return Solver(name, abstol, reltol, ode_tolerances(abstol, reltol)..., max_steps, adjoint)
end

"""OrdinaryDiffEq's own tolerances for the ODE's steps, or the search's where that is tighter."""
function ode_tolerances(abstol, reltol)
    loosest = max(abstol, reltol)
    return min(1.0e-6, loosest), min(1.0e-3, loosest)
end

"""
    Outcome

Where the search ended for each of n samples.

# Fields

  - `u`: states (width, n).
  - `fu`: the cell's values there (width, n).
  - `n_evals`: evaluations of the cell, and of products with its Jacobian, that the sample took. In
    a batch that is integrated together every sample has the batch's count.
  - `converged`: whether the state meets the stopping rule; for a finite horizon, whether the
    integration reached it.
"""
struct Outcome{M <: AbstractMatrix}
    u::M
    fu::M
    n_evals::Vector{Int}
    converged::Vector{Bool}
end

"""
    is_steady(u, fu, solver) -> Vector{Bool}

Return per sample whether ``||f - u||_\\infty`` is at most `abstol` or at most
``reltol ||f||_\\infty``: the rule of SteadyStateDiffEq's `DynamicSS`, sample by sample.
"""
function is_steady(u, fu, solver)
    gap, size_of_f = column_norms(fu .- u), column_norms(fu)
    steady = @. isfinite(gap) & ((gap <= solver.abstol) | (gap <= solver.reltol * size_of_f))
    return Vector{Bool}(steady)
end

"""Whether the search goes on, per sample: all is finite, and it is not steady."""
function goes_on(u, fu, solver)
    gap, size_of_f = maximum(abs, fu .- u; dims = 1), maximum(abs, fu; dims = 1)
    abstol, reltol = eltype(u)(solver.abstol), eltype(u)(solver.reltol)
    goes = @. isfinite(gap) & isfinite(size_of_f) & (gap > abstol) & (gap > reltol * size_of_f)
    return Vector{Bool}(vec(Array(goes)))  # one transfer from a GPU
end

"""Maximum norm of every column, on the host."""
column_norms(a::AbstractMatrix) = Array(vec(maximum(abs, a; dims = 1)))

"""Whether every entry of a column is finite, for all columns, on the host."""
finite_columns(a::AbstractMatrix) = Array(vec(all(isfinite, a; dims = 1)))

"""
    residual(outcome) -> Vector

Return ``||f(u) - u||_\\infty / max(||f(u)||_\\infty, eps)`` per sample.
"""
function residual(outcome::Outcome)
    eps_of = eps(eltype(outcome.u))
    return column_norms(outcome.fu .- outcome.u) ./ max.(column_norms(outcome.fu), eps_of)
end

# In one pass, without the difference as an array.
function residual(outcome::Outcome{Matrix{T}}) where {T}
    return map(eachcol(outcome.u), eachcol(outcome.fu)) do u, fu
        gap, size_of_f, finite = gap_and_size(u, fu)
        finite ? gap / max(size_of_f, eps(T)) : T(NaN)
    end
end

"""
A way to take a step of the search. What it remembers of the samples has them as the last axis.

`step!(method, cell, search)` moves the states of the first `search.k` columns, writes f there, and
counts the evaluations; `move!(method, from, to)` puts what it remembers of the sample of one column
in the place of another's.
"""
abstract type SearchMethod end

"""
A search under way, of the samples in the first `k` columns.

Every sample stops by itself, so that its answer does not depend on its batch; one that is done
leaves at once, and the last column takes its place, so that the slowest does not cost the batch.
"""
mutable struct Search{T <: AbstractFloat}
    const u::Matrix{T}   # (width, B)
    const fu::Matrix{T}
    const h::Matrix{T}
    const n_evals::Vector{Int}
    const index::Vector{Int}  # which sample it is
    k::Int
end

"""
    search(solver, cell, flat, h, u0 = nothing, pool = nothing) -> Outcome

Search the steady states of the samples `h` (width, n) from `u0`, by default f(0, h); `flat` are the
parameters of the `cell` as they act. With a [`Pool`](@ref) the outcome's arrays, too, are the pool's.
On a GPU it is [`search_by_masks`](@ref).
"""
function search(
        solver::Solver, network::AbstractNetwork, flat::AbstractVector{T}, h::AbstractMatrix{T}, u0 = nothing,
        pool = nothing,
    ) where {T}
    size(h, 2) == 0 && return Outcome(h, h, Int[], Bool[])
    if !is_on_host(flat)
        pool = something(pool, pool_like(flat))
        return search(solver, Cell(network, flat, h, pool), h, u0, pool)
    end
    h = convert(Matrix{T}, h)
    return search(solver, on_host(network, flat, h, pool), h, u0, pool)
end

"""The same of a cell as searches evaluate it; `u0` may be nothing."""
function search(solver::Solver, cell, h::AbstractMatrix, u0 = nothing, pool = nothing)
    if solver.name in ODE_METHODS
        check_loaded(follow, "solver=\"$(solver.name)\"", FOR_STEADY_STATES)
        return follow(solver, cell, h, u0)
    end
    return search_own(solver, cell, h, u0, pool)
end

function search_own(solver::Solver, cell, h::Matrix{T}, u0, pool) where {T}
    n = size(h, 2)
    u, fu = borrow_like(pool, h), borrow_like(pool, h)
    start!(u, cell, h, u0)
    evaluate!(fu, cell, u, h)
    n_evals = u0 === nothing ? 2 : 1
    s = Search{T}(u, fu, borrow_copy(pool, h), fill(n_evals, n), collect(1:n), n)
    return run_search(solver, cell, s, pool)
end

"""Write u(0) to `u`."""
start!(u, cell, h, ::Nothing) = evaluate!(u, cell, fill!(u, 0), h)
start!(u, cell, h, u0::AbstractMatrix) = copyto!(u, u0)

"""Search from where `s` stands, and return the [`Outcome`](@ref) of all its samples."""
function run_search(solver::Solver, cell, s::Search, pool = nothing)
    n = s.k
    outcome = Outcome(borrow_like(pool, s.u), borrow_like(pool, s.u), zeros(Int, n), fill(false, n))
    return run!(make_method(solver, cell, s, pool), cell, s, solver, outcome)
end

"""The cell as searches evaluate it; see [`evaluate!`](@ref)."""
on_host(network::Network, flat, h, pool = nothing) = Cell(network, flat, h, pool)

"""
    ode_algorithm(::Val{name})

The method of OrdinaryDiffEq called `name`; they come with the extension that their packages load.
"""
function ode_algorithm(::Val{name}) where {name}
    throw(
        ArgumentError(
            "solver=\"$name\" needs the packages OrdinaryDiffEqAdamsBashforthMoulton, " *
                "OrdinaryDiffEqLowOrderRK, OrdinaryDiffEqStabilizedRK and OrdinaryDiffEqTsit5: " *
                "load them before.",
        ),
    )
end

"""
    follow(solver, cell, h, u0) -> Outcome

Follow du/dt = f(u, h) - u from `u0`, or f(0, h), by `DynamicSS` until every sample is steady by
[`is_steady`](@ref) (`DynamicSS`'s own rule has one maximum over the batch, so that samples with small
states could end too early beside large ones). Samples that overflow do not stop the others.

A batch is one ODE, whose samples share their steps. [`search`](@ref) is faster where it has the
method, because each sample has its own steps.
"""
function follow end

never_unstable(_...) = false

"""
    check_loaded(f, what, packages)

Throw an error unless the function has a method: that of an extension, which the packages load.
"""
function check_loaded(f, what, packages)
    isempty(methods(f)) || return nothing
    throw(ArgumentError("Julia's packages for $what are not loaded: `using $packages` first."))
end

function make_method(solver::Solver, cell, s::Search, pool)
    solver.name === :tsit5 && return FollowODE(solver, s, pool)
    solver.name === :anderson && return Anderson(s.u, s.fu, pool)
    solver.name === :broyden && return Broyden(s.u, pool)
    solver.name === :newton && return Newton(s.u)
    solver.name === :fixed_point && return FixedPoint()
    return PeacemanRachford(cell, s)
end

function run!(method::SearchMethod, cell, s::Search, solver::Solver, outcome::Outcome)
    leave!(outcome, method, s, solver, 0)
    for n_steps in 1:(solver.max_steps)
        s.k == 0 && break
        step!(method, cell, s)
        leave!(outcome, method, s, solver, n_steps)
    end
    return outcome
end

"""Let go of the samples that are steady or not finite; after the last step, of all."""
function leave!(outcome::Outcome, method::SearchMethod, s::Search{T}, solver::Solver, n_steps) where {T}
    abstol, reltol = T(solver.abstol), T(solver.reltol)
    for j in (s.k):-1:1
        u, fu = view(s.u, :, j), view(s.fu, :, j)
        gap, size_of_f, finite = gap_and_size(u, fu)
        steady = finite && (gap <= abstol || gap <= reltol * size_of_f)
        finite && !steady && n_steps < solver.max_steps && continue
        i = s.index[j]
        copyto!(view(outcome.u, :, i), u)
        copyto!(view(outcome.fu, :, i), fu)
        outcome.n_evals[i], outcome.converged[i] = s.n_evals[j], steady
        from = s.k
        s.k -= 1
        from == j && continue
        foreach(a -> move_column!(a, from, j), (s.u, s.fu, s.h, s.n_evals, s.index))
        move!(method, from, j)
    end
    return nothing
end

"""Whether the array, or what it is a view of, is in the memory of the CPU."""
is_on_host(array) = similar(array, 0) isa Array

"""The outcomes of single samples as one."""
function together(outcomes)
    return Outcome(
        reduce(hcat, [o.u for o in outcomes]), reduce(hcat, [o.fu for o in outcomes]),
        [only(o.n_evals) for o in outcomes], [only(o.converged) for o in outcomes],
    )
end
