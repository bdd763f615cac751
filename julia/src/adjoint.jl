# The state as a differentiable function of the cell's flat parameters and of h.

"""The adjoint is solved to the forward tolerance, but never more loosely than this."""
const LOOSEST_ADJOINT = 1.0e-3

"""Longest Krylov basis that the adjoint keeps, and most products with the Jacobian it takes."""
const ADJOINT_RESTART = 50
const ADJOINT_PRODUCTS = 500

"""
    Search(solver)

The search as an algorithm for `SteadyStateProblem`s, so that SciMLSensitivity's
`SteadyStateAdjoint` differentiates every solver alike. Its problems are those of [`Field`](@ref).
What it found is kept in `found`.
"""
struct Search <: SciMLBase.AbstractSteadyStateAlgorithm
    solver::Solver
    found::Base.RefValue{Outcome}
end

Search(solver::Solver) = Search(solver, Ref{Outcome}())

function SciMLBase.__solve(prob::SciMLBase.AbstractSteadyStateProblem, alg::Search, args...; kwargs...)
    field = prob.f.f::Field
    outcome = search(alg.solver, field.cell, prob.p, last(field.shapes)[2])
    alg.found[] = outcome
    return SciMLBase.build_solution(
        prob, alg, vec(outcome.u), vec(outcome.fu .- outcome.u);
        retcode = all(outcome.converged) ? ReturnCode.Success : ReturnCode.Failure,
        original = outcome,
    )
end

"""
    states(model, solver, flat, h, found) -> (width, n)

Return the states that the loss is a function of, differentiable in `flat`, the cell's parameters
as they act, and in `h` (width, n). The [`Outcome`](@ref) is put into `found`.
"""
function states(model, solver::Solver, flat, h, found::Base.RefValue{Outcome})
    model.horizon === nothing || return integrate(model, solver, flat, h, model.horizon, found)
    solver.adjoint === :implicit && return implicit(solver, model.cell, flat, h, found)
    outcome = @ignore_derivatives search(solver, model.cell, glue([flat, h]), size(h, 2))
    @ignore_derivatives found[] = outcome
    solver.adjoint === :jfb && return jfb(model.cell, flat, h, outcome.u)
    solver.name === :fixed_point && return unroll(model.cell, flat, h, outcome.length)
    # The integration once more, to the time where the search ended.
    u = integrate(model, solver, flat, h, maximum(outcome.length), found)
    @ignore_derivatives found[] = Outcome(
        found[].u, found[].fu, outcome.n_evals, outcome.converged, outcome.length
    )
    return u
end

"""
By the implicit function theorem: with ``\\lambda = (I - \\partial f/\\partial z)^{-T} dL/dz`` at z*
the gradients are ``\\lambda^T \\partial f/\\partial\\theta`` and ``\\lambda^T \\partial f/\\partial h``
(Bai et al. 2019, theorem 1).
"""
function implicit(solver::Solver, cell::Network, flat, h, found::Base.RefValue{Outcome})
    p = glue([flat, h])
    prob, alg, sensealg = @ignore_derivatives begin
        field = Field(cell, size(h, 2))
        adjoint = AdjointSolve(solver, field, p, found)
        (
            SteadyStateProblem(ode_function(field), zero(vec(h)), p),
            Search(solver, found),
            SteadyStateAdjoint(; autojacvec = ZygoteVJP(), linsolve = LinearSolveFunction(adjoint)),
        )
    end
    return reshape(solve(prob, alg; p, sensealg).u, size(h))
end

"""
    AdjointSolve(solver, field, p, found)

How `SteadyStateAdjoint` solves its linear system, ``(\\partial f/\\partial z - I)^T \\lambda = dL/dz`` at
the state in `found`: by GMRES, with the products of [`Pullback`](@ref).

SciMLSensitivity's own products evaluate the cell once more each, and the gradient of its weights
too, which is needed only once at the end: with them a training step of MNIST took 1.6 times as long.
"""
struct AdjointSolve
    solver::Solver
    field::Field
    p::AbstractVector
    found::Base.RefValue{Outcome}
end

function (adjoint::AdjointSolve)(A, b::AbstractVector{T}, u, args...; kwargs...) where {T}
    (; solver, field, p, found) = adjoint
    flat, h = cut(p, field.shapes)
    pullback = Pullback(field.cell, flat, found[].u .+ h)
    shape = size(h)
    function product(out, row, u, p, t)
        pullback(reshape(out, shape), reshape(row, shape))
        out .-= row
        return out
    end
    operator = FunctionOperator(product, b; islinear = true, isconstant = true)
    rtol = max(min(max(solver.abstol, solver.reltol), LOOSEST_ADJOINT), 10 * eps(T))
    solution = solve(
        LinearProblem(operator, b), KrylovJL_GMRES(; gmres_restart = ADJOINT_RESTART);
        # abstol's default, 3e-4 in Float32, would be larger than most gradients of a mean.
        abstol = zero(T), reltol = T(rtol), maxiters = ADJOINT_PRODUCTS, verbose = None(),
    )
    return copyto!(u, solution.u)
end

"""The value is z*, the gradient that of one application of the cell to it (Fung et al. 2022)."""
function jfb(cell::Network, flat, h, z)
    fz = cell(flat, (@ignore_derivatives z) .+ h)
    return fz .+ @ignore_derivatives(z .- fz)
end

"""The iterates of `fixed_point` once more, each sample as many as it took, for Zygote to see."""
function unroll(cell::Network, flat, h, n_steps)
    u = cell(flat, h)
    for k in 1:Int(maximum(n_steps))
        fu = cell(flat, u .+ h)
        going = @ignore_derivatives row_like(u, k .<= n_steps)
        u = going .* fu .+ (1 .- going) .* u
    end
    return u
end

"""The numbers as a row (1, n), of the kind and type of the matrix `a`."""
function row_like(a::AbstractMatrix{T}, numbers) where {T}
    return copyto!(similar(a, 1, length(numbers)), T.(numbers))
end
