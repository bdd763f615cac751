# The package's own solvers as algorithms for SciML's `SteadyStateProblem`s.

"""
    Batched(name)

Solve a `SteadyStateProblem` for a batch: the columns of its state are samples, each of which stops
by itself, so that no answer depends on its batch. `name` is `:anderson`, `:broyden`,
`:fixed_point`, `:newton`, `:peaceman_rachford` or `:tsit5`; of these `:newton` is for cells of
`Dense` layers with one activation, and `:peaceman_rachford` for a [`MonotoneCell`](@ref).

The right-hand side is out of place, and each column of its value a function of that column of the
state. The solution's `original` has the evaluations of each sample, and which converged.

# Example

```julia
using PyDEQ, SciMLBase
f(u, p, t) = cos.(u) .- u
sol = solve(SteadyStateProblem(f, [0.0 1.0]), Batched(:anderson); abstol = 1.0e-10)
sol.u ≈ [0.7390851332151607 0.7390851332151607]
```
"""
struct Batched <: SciMLBase.AbstractSteadyStateAlgorithm
    name::Symbol
    function Batched(name::Symbol)
        check_choice("solver", name, OWN_SOLVERS)
        return new(name)
    end
end

"""
The cell of any `SteadyStateProblem`, f(u) = u + du. In a search over it the place of `h` has the
number of each sample.
"""
struct ProblemCell{T, F}
    f::F
    states::Matrix{T}
end

function evaluate!(out, cell::ProblemCell, u, numbers)
    at = [Int(number) for number in vec(numbers)]
    cell.states[:, at] .= u
    out .= view(cell.f(cell.states), :, at)
    return out
end

function SciMLBase.__solve(
        prob::SciMLBase.AbstractSteadyStateProblem, alg::Batched, args...;
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
    evaluate!(fu, cell, u, numbers)
    solver = Solver(alg.name, abstol, reltol, maxiters, :implicit)
    outcome = run_search(solver, cell, Search{T}(u, fu, numbers, fill(1, n), collect(1:n), n))
    return SciMLBase.build_solution(
        prob, alg, reshape(outcome.u, size(u0)), reshape(outcome.fu .- outcome.u, size(u0));
        retcode = all(outcome.converged) ? ReturnCode.Success : ReturnCode.Failure,
        original = outcome,
    )
end
