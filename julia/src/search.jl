# The search for a steady state of du/dt = f(u, h) - u: what all solvers share, and those that
# work sample by sample. `tsit5`, which follows the ODE, is in dynamics.jl.

const SOLVERS = (:tsit5, :anderson, :newton, :fixed_point)
const ADJOINTS = (:implicit, :jfb, :unrolled)

"""Past steps that Anderson acceleration combines."""
const ANDERSON_WINDOW = 5

"""Anderson steps between two times that its history is cut to the window."""
const ANDERSON_STRETCH = 50

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
  - `length`: how far the search went for each sample: time for `tsit5` and a finite horizon,
    iterations otherwise.
"""
struct Outcome{M <: AbstractMatrix}
    u::M
    fu::M
    n_evals::Vector{Int}
    converged::Vector{Bool}
    length::Vector{Float64}
end

"""
    is_steady(u, fu, solver) -> Vector{Bool}

Return per sample whether ``||f - u||_\\infty`` is at most `abstol` or at most
``reltol ||f||_\\infty``: the rule of SteadyStateDiffEq's `DynamicSS`, sample by sample.
"""
function is_steady(u, fu, solver::Solver)
    gap, size_of_f = column_norms(fu .- u), column_norms(fu)
    steady = @. isfinite(gap) & ((gap <= solver.abstol) | (gap <= solver.reltol * size_of_f))
    return Vector{Bool}(steady)
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

"""
    Field(cell, n)

The right-hand side f(u, h) - u for n samples, as SciML's solvers call it: `u` and `p` are flat
vectors, `p` holds the cell's parameters and then `h`, so that gradients reach both. (A captured h
would get no gradient: that is why the encoder of the original program never trains.)

It counts its evaluations.
"""
struct Field
    cell::Network
    shapes::Vector{Dims}
    n_evals::Base.RefValue{Int}
end

function Field(cell::Network, n::Int)
    width = first(cell.shapes)[2]
    return Field(cell, [(cell.n_parameters,), (width, n)], Ref(0))
end

function (field::Field)(u::AbstractVector, p::AbstractVector, _)
    @ignore_derivatives field.n_evals[] += 1
    flat, h = cut(p, field.shapes)
    fu = field.cell(flat, reshape(u, size(h)) .+ h)
    du = (vec(fu) .- u)::typeof(u)  # SciML's solvers need the type, which the layers hide
    return du
end

"""The field as an out-of-place ODE function, compiled for its own type."""
ode_function(field::Field) = ODEFunction{false, SciMLBase.FullSpecialize}(field)

"""
    search(solver, cell, p, n; each = false) -> Outcome

Search the steady states of n samples from u(0) = f(0, h).

`p` holds the cell's flat parameters and then h (width, n). With `each`, `tsit5` integrates every
sample by itself, with steps of its own: slower, but then no answer depends on its batch. The other
solvers always treat each sample by itself.
"""
function search(solver::Solver, cell::Network, p::AbstractVector, n::Int; each::Bool = false)
    alone = each || solver.name in (:newton, :anderson)
    alone && n > 1 && return search_each(solver, cell, p, n)
    flat, h = cut(p, Field(cell, n).shapes)
    u = cell(flat, h)
    fu = cell(flat, u .+ h)
    good = finite_columns(fu)
    if !all(good)  # a solver must not see what has no finite start
        return scatter(u, fu, good, search_columns(solver, cell, flat, h[:, good]))
    end
    steady = is_steady(u, fu, solver)
    all(steady) && return Outcome(u, fu, fill(2, n), steady, zeros(n))
    solver.name === :tsit5 && return follow(solver, cell, p, u, fu)
    solver.name === :fixed_point && return iterate_cell(solver, cell, flat, h, u, fu)
    solver.name === :newton && return newton(solver, cell, p, u)
    return anderson(solver, cell, p, u)
end

function search_columns(solver, cell, flat, h)
    n = size(h, 2)
    n == 0 && return Outcome(h, h, Int[], Bool[], Float64[])
    return search(solver, cell, glue([flat, h]), n)
end

"""Put the outcomes of the columns `good` among those that have no finite start."""
function scatter(u, fu, good, found::Outcome)
    n = length(good)
    n_evals, converged, len = fill(2, n), fill(false, n), zeros(n)
    u, fu = copy(u), copy(fu)
    u[:, good], fu[:, good] = found.u, found.fu
    n_evals[good], converged[good], len[good] = found.n_evals, found.converged, found.length
    return Outcome(u, fu, n_evals, converged, len)
end

"""Search sample by sample."""
function search_each(solver::Solver, cell::Network, p::AbstractVector, n::Int)
    n_flat = cell.n_parameters
    width = (length(p) - n_flat) ÷ n
    one = p[1:(n_flat + width)]
    return together(
        map(1:n) do j
            copyto!(one, n_flat + 1, p, n_flat + (j - 1) * width + 1, width)
            search(solver, cell, one, 1)
        end
    )
end

"""The outcomes of single samples as one."""
function together(outcomes)
    return Outcome(
        reduce(hcat, [o.u for o in outcomes]), reduce(hcat, [o.fu for o in outcomes]),
        [only(o.n_evals) for o in outcomes], [only(o.converged) for o in outcomes],
        [only(o.length) for o in outcomes],
    )
end

"""The outcome of a search that ended at `u`; `n_evals` without the one that this takes."""
function outcome_at(solver, cell, p, u::AbstractMatrix, n_evals, len)
    n = size(u, 2)
    flat, h = cut(p, Field(cell, n).shapes)
    fu = cell(flat, u .+ h)
    return Outcome(u, fu, fill(n_evals + 1, n), is_steady(u, fu, solver), fill(Float64(len), n))
end

# --- plain iteration, every sample until its own end ---

function iterate_cell(solver::Solver, cell::Network, flat, h, u, fu)
    n = size(u, 2)
    u, fu = copy(u), copy(fu)
    n_evals, len = fill(2, n), zeros(n)
    active = findall(.!is_steady(u, fu, solver))
    for _ in 1:solver.max_steps
        isempty(active) && break
        u[:, active] = fu[:, active]
        f = cell(flat, u[:, active] .+ h[:, active])
        fu[:, active] = f
        n_evals[active] .+= 1
        len[active] .+= 1
        going = .!is_steady(u[:, active], f, solver) .& finite_columns(f)
        active = active[going]
    end
    return Outcome(u, fu, n_evals, is_steady(u, fu, solver), len)
end

# --- Newton's method with GMRES, by NonlinearSolve's NewtonRaphson; one sample ---

function newton(solver::Solver, cell::Network, p::AbstractVector, u::AbstractMatrix{T}) where {T}
    p isa Array || throw(ArgumentError(CPU_ONLY))
    field = Field(cell, 1)
    sol = solve(
        SteadyStateProblem(ode_function(field), vec(u), p),
        SSRootfind(NewtonRaphson(; linsolve = KrylovJL_GMRES()));
        abstol = T(solver.abstol), reltol = T(solver.reltol), maxiters = solver.max_steps,
        # The rule of `is_steady`: f(u) - u is the residual, so that their sum is f(u).
        termination_condition = NormTerminationMode(Base.Fix2(norm, Inf)), verbose = None(),
    )
    n_evals = field.n_evals[] + 2  # u(0) and its f
    return outcome_at(solver, cell, p, reshape(sol.u, size(u)), n_evals, sol.stats.nsteps)
end

const CPU_ONLY = "The solvers \"newton\" and \"anderson\" of the Julia engine work on the CPU " *
    "only; on a GPU take \"tsit5\" or \"fixed_point\", or use device=\"cpu\"."

# --- Anderson acceleration, by FixedPointAcceleration; one sample ---

function anderson(solver::Solver, cell::Network, p::AbstractVector, u::AbstractMatrix{T}) where {T}
    p isa Array || throw(ArgumentError(CPU_ONLY))
    field = Field(cell, 1)
    # The package works in Float64; the cell is evaluated in the model's type.
    map_of(x) = Float64.(field(T.(x), p, nothing)) .+ x
    steady(x, fx) = only(is_steady(T.(x)[:, :], T.(fx)[:, :], solver)) ? 0.0 : 1.0
    inputs = reshape(Float64.(vec(u)), :, 1)
    outputs = reshape(map_of(inputs[:, 1]), :, 1)
    n_steps = 0
    while n_steps < solver.max_steps
        stretch = min(ANDERSON_STRETCH, solver.max_steps - n_steps)
        before = size(inputs, 2)
        found = stretch_of_anderson(map_of, steady, inputs, outputs, stretch, eps(T))
        found === nothing && break
        n_steps += max(size(found.Inputs_, 2) - before, 1)
        inputs, outputs = last_columns(found.Inputs_), last_columns(found.Outputs_)
        found.TerminationCondition_ === :ReachedMaxIter || break
    end
    state = reshape(T.(inputs[:, end]), size(u))
    return outcome_at(solver, cell, p, state, field.n_evals[] + 2, n_steps)
end

last_columns(a) = a[:, max(1, end - ANDERSON_WINDOW):end]

"""Go on for at most `n_steps`; nothing where the numbers got too large for the least squares."""
function stretch_of_anderson(map_of, steady, inputs, outputs, n_steps, eps_of)
    try
        return FixedPointAcceleration.fixed_point(
            map_of, inputs; Outputs = outputs, Algorithm = :Anderson, MaxM = ANDERSON_WINDOW + 1,
            MaxIter = n_steps, ConvergenceMetric = steady, ConvergenceMetricThreshold = 0.5,
            ConditionNumberThreshold = inv(sqrt(eps_of)), ReplaceInvalids = :ReplaceVector,
        )
    catch error
        error isa Union{ArgumentError, LAPACKException} || rethrow()
        return nothing
    end
end
