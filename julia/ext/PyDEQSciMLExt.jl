# The package's own solvers as algorithms for SciML's `SteadyStateProblem`s.
module PyDEQSciMLExt

using PyDEQ: Batched, PyDEQ, Search, Solver, run_search
using SciMLBase: AbstractSteadyStateAlgorithm, AbstractSteadyStateProblem, ReturnCode, SciMLBase, solve

"""
The cell of any `SteadyStateProblem`, f(u) = u + du. In a search over it the place of `h` has the
number of each sample.
"""
struct ProblemCell{T, F}
    f::F
    states::Matrix{T}
end

function PyDEQ.evaluate!(out, cell::ProblemCell, u, numbers)
    at = [Int(number) for number in vec(numbers)]
    cell.states[:, at] .= u
    out .= view(cell.f(cell.states), :, at)
    return out
end

"""The algorithm of that name, as SciML needs its type."""
struct Algorithm <: AbstractSteadyStateAlgorithm
    name::Symbol
end

PyDEQ.algorithm(solver::Batched) = Algorithm(solver.name)

function SciMLBase.solve(prob::AbstractSteadyStateProblem, solver::Batched, args...; kwargs...)
    return solve(prob, Algorithm(solver.name), args...; kwargs...)
end

function SciMLBase.__solve(
        prob::AbstractSteadyStateProblem, alg::Algorithm, args...;
        abstol = 1.0e-3, reltol = 1.0e-3, maxiters = 1000, kwargs...,
    )
    if alg.name in (:newton, :peaceman_rachford)
        throw(
            ArgumentError(
                "Batched($(repr(alg.name))) needs a cell whose layers it knows: " *
                    (alg.name === :newton ? "Dense, with one activation" : "a MonotoneCell") *
                    ". Take another, or SciML's SSRootfind.",
            ),
        )
    end
    u0 = prob.u0
    T, n = eltype(u0), size(u0, 2)
    matrix = reshape(u0, :, n)
    field(states) = states .+ reshape(prob.f(reshape(states, size(u0)), prob.p, T(Inf)), size(states))
    cell = ProblemCell(field, Matrix{T}(matrix))
    u, fu = Matrix{T}(matrix), similar(matrix)
    numbers = reshape(T.(1:n), 1, n)
    PyDEQ.evaluate!(fu, cell, u, numbers)
    solver = Solver(alg.name, abstol, reltol, maxiters, :implicit)
    outcome = run_search(solver, cell, Search{T}(u, fu, numbers, fill(1, n), collect(1:n), n))
    return SciMLBase.build_solution(
        prob, alg, reshape(outcome.u, size(u0)), reshape(outcome.fu .- outcome.u, size(u0));
        retcode = all(outcome.converged) ? ReturnCode.Success : ReturnCode.Failure,
        original = outcome,
    )
end

end
