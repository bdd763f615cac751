# The state as a differentiable function of the cell's flat parameters and of h.

"""
The adjoint is solved to so many times the forward tolerance, but never more loosely than the second
number: a gradient that is 1 % off is nothing beside what a batch's is off from that of all the data.
"""
const ADJOINT_SHARE, LOOSEST_ADJOINT = 10, 1.0e-2

"""
    SteadyState(solver)

The search as an algorithm for `SteadyStateProblem`s, so that SciMLSensitivity's
`SteadyStateAdjoint` differentiates every solver alike. Its problems are those of [`Field`](@ref).
What it found is kept in `found`.
"""
struct SteadyState <: SciMLBase.AbstractSteadyStateAlgorithm
    solver::Solver
    found::Base.RefValue{Outcome}
end

SteadyState(solver::Solver) = SteadyState(solver, Ref{Outcome}())

function SciMLBase.__solve(prob::SciMLBase.AbstractSteadyStateProblem, alg::SteadyState, args...; kwargs...)
    field = prob.f.f::Field
    flat, h = cut(prob.p, field.shapes)
    outcome = search(alg.solver, field.cell, copy(flat), copy(h))
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
    return steady_states(solver, model.cell, flat, h, found)
end

function steady_states(solver::Solver, cell::Network, flat, h, found::Base.RefValue{Outcome})
    solver.adjoint === :implicit && return implicit(solver, cell, flat, h, found)
    solver.adjoint === :unrolled && return unroll(solver, cell, flat, h, found)
    @ignore_derivatives found[] = search(solver, cell, flat, h)
    return jfb(cell, flat, h, @ignore_derivatives found[].u)
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
            SteadyState(solver, found),
            SteadyStateAdjoint(; autojacvec = ZygoteVJP(), linsolve = LinearSolveFunction(adjoint)),
        )
    end
    return reshape(solve(prob, alg; p, sensealg).u, size(h))
end

"""
    AdjointSolve(solver, field, p, found)

How `SteadyStateAdjoint` solves its linear system, ``(\\partial f/\\partial z - I)^T \\lambda = dL/dz`` at
the state in `found`: by [`solve_linear!`](@ref), with the products of [`Jacobian`](@ref).
"""
struct AdjointSolve
    solver::Solver
    field::Field
    p::AbstractVector
    found::Base.RefValue{Outcome}
end

function (adjoint::AdjointSolve)(A, b::AbstractVector, u, args...; kwargs...)
    (; solver, field, p, found) = adjoint
    flat, h = cut(p, field.shapes)
    lambda = adjoint_state(solver, field.cell, flat, h, found[].u, reshape(b, size(h)))
    u .= .-vec(lambda)
    return u
end

"""
    adjoint_state(solver, cell, flat, h, z, g) -> (width, n)

Solve ``(I - \\partial f/\\partial z)^T \\lambda = g`` at the states `z`, on the host.
"""
function adjoint_state(solver::Solver, network::Network, flat, h, z, g::AbstractMatrix{T}) where {T}
    here = Matrix{T}(h)
    jacobian = Jacobian(Cell(network, Vector{T}(flat), here), Matrix{T}(z), here)
    b = Matrix{T}(g)
    rtol = min(ADJOINT_SHARE * max(solver.abstol, solver.reltol), LOOSEST_ADJOINT)
    lambda = solve_linear!(similar(b), zeros(Int, size(b, 2)), jacobian, b, rtol, true)
    return copyto!(similar(g), lambda)
end

"""The value is z*, the gradient that of one application of the cell to it (Fung et al. 2022)."""
function jfb(cell::Network, flat, h, z)
    fz = cell(flat, (@ignore_derivatives z), h)
    return fz .+ @ignore_derivatives(z .- fz)
end

"""The numbers as a row (1, n), of the kind and type of the matrix `a`."""
function row_like(a::AbstractMatrix{T}, numbers) where {T}
    return copyto!(similar(a, 1, length(numbers)), T.(numbers))
end
