# Samples in parts, which Julia's threads take by turns.

"""
Samples that are searched at once in a prediction. So many are as quick as more: the states of a part stay
in a core's cache. The parts do not depend on the number of threads, and so the answers do not.
"""
const PART = 256

"""
    by_parts(work!, parts, n_threads)

Call `work!(part, thread)` for each of the parts, on so many threads, which have the numbers from 1: each
takes the next part when it is done with one. What they write must be apart.

BLAS has one thread meanwhile, of each that calls it: with more, they would wait for each other.
"""
function by_parts(work!::F, parts::AbstractVector, n_threads::Int) where {F}
    n_threads = min(length(parts), n_threads)
    if n_threads <= 1
        foreach(part -> work!(part, 1), parts)
        return nothing
    end
    n_taken = Threads.Atomic{Int}(0)
    failures = with_one_blas_thread() do
        tasks = [Threads.@spawn(take_parts(work!, parts, thread, n_taken)) for thread in 1:n_threads]
        filter!(!isnothing, fetch.(tasks))
    end
    isempty(failures) || throw(first(failures))
    return nothing
end

"""Work on parts until none is left. Return what was thrown: then there is no other part for anybody."""
function take_parts(work!, parts, thread, n_taken)
    try
        while (i = Threads.atomic_add!(n_taken, 1) + 1) <= length(parts)
            work!(parts[i], thread)
        end
        return nothing
    catch error
        Threads.atomic_add!(n_taken, length(parts))
        return CapturedException(error, catch_backtrace())
    end
end

function with_one_blas_thread(work)
    n = BLAS.get_num_threads()
    n == 1 && return work()
    BLAS.set_num_threads(1)
    try
        return work()
    finally
        BLAS.set_num_threads(n)
    end
end

"""Whether several threads may evaluate the network at once: not if it is code of the user's."""
allows_threads(::AbstractNetwork) = false
allows_threads(::Union{Network, LayeredNetwork}) = true

"""How many threads a session has."""
function threads_for(model::Model, theta)
    networks = filter(part -> part isa AbstractNetwork, [model.encoder, model.cell, model.decoder, model.init])
    return is_on_host(theta) && all(allows_threads, networks) ? Threads.nthreads() : 1
end

"""The parts of so many samples: one on a GPU, which computes all of them in the time of a few."""
parts_of(n::Int, width::Int, ::AbstractPool) = [1:n]
parts_of(n::Int, width::Int, ::Pool) = [first:min(first + width - 1, n) for first in 1:width:n]

"""So many pools of the session's, each for a thread or a part."""
function pools_of(session, n::Int)
    (; pools) = session
    while length(pools) < n
        push!(pools, pool_like(session.theta))
    end
    return pools
end

"""The columns of a part, as a matrix of the pool's."""
part_of(x::AbstractMatrix, part, pool) = length(part) == size(x, 2) ? x : borrow_copy(pool, view(x, :, part))

# --- the search of a batch that is trained on, and its adjoint ---

"""
    least_part(solver, cell)

Fewest samples of a part of a batch: with fewer, the narrower products of matrices and the threads' waking cost
more than a second thread gains. Of the MNIST cell of the post and two threads, a step at 128 samples takes 0.72
of the time with `tsit5`, in parts of 64, but 0.98 with `anderson`; at 500 it takes 0.59 and 0.75. On one thread
parts cost up to 0.07. Layers go sample by sample all the same.
"""
least_part(solver::Solver, ::Cell) = solver.name === :tsit5 ? 64 : 125
least_part(::Solver, ::ActingLayers) = 16

"""A batch is divided in so many parts at most, unless these would be longer than `PART`."""
const MOST_PARTS = 4

"""
    search_with_adjoint(session, cell, h, u0) -> (outcome, solve!)

Return the [`Outcome`](@ref) of a batch, and `solve!(row)`, what [`solve_adjoint`](@ref) makes of the `row`
there. Both by parts, in which each sample stops by itself all the same.
"""
function search_with_adjoint(session::Session, cell, h, u0)
    (; solver, pool) = session
    parts = parts_of_batch(session, cell, h)
    if length(parts) == 1
        outcome = search(solver, cell, h, u0, pool)
        return outcome, row -> solve_adjoint(solver, linearize(cell, outcome.u, h, pool), row, pool)
    end
    pools, found = pools_of(session, length(parts)), Vector{Any}(undef, length(parts))
    by_parts(eachindex(parts), session.n_threads) do i, _
        own_pool = rewind!(pools[i])
        own_h = part_of(h, parts[i], own_pool)
        own_cell = another(cell, own_h, own_pool)
        start = u0 === nothing ? nothing : view(u0, :, parts[i])
        found[i] = own_cell, own_h, search(solver, own_cell, own_h, start, own_pool)
    end
    function solve!(row)
        by_parts(eachindex(parts), session.n_threads) do i, _
            own_cell, own_h, outcome = found[i]
            jacobian = linearize(own_cell, outcome.u, own_h, pools[i])
            row[:, parts[i]] = solve_adjoint(solver, jacobian, part_of(row, parts[i], pools[i]), pools[i])
        end
        return row
    end
    return joined(map(last, found), parts, pool), solve!
end

"""The parts of the batch `h`, as long as each other: one where its samples share their steps."""
function parts_of_batch(session::Session, cell, h)
    n = size(h, 2)
    (session.solver.name in ODE_METHODS || !is_divisible(cell)) && return [1:n]
    n_parts = max(min(n ÷ least_part(session.solver, cell), MOST_PARTS), cld(n, PART), 1)
    return parts_of(n, cld(n, n_parts), session.pool)
end

"""Whether [`another`](@ref) makes a cell for another thread of this one."""
is_divisible(_) = false
is_divisible(::Union{Cell, ActingLayers}) = true

"""The same cell for the samples `h`, to be evaluated at the same time."""
another((; network, arrays, parameters, factor)::ActingLayers, h, pool) =
    ActingLayers(network, arrays, parameters, factor, pool)
function another(cell::Cell{T, M}, h, pool) where {T, M}
    layers = M[borrow(pool, T, length(bias), size(h, 2)) for bias in cell.biases]
    (; shapes, weights, biases, σ, activation, is_monotone) = cell
    return Cell(shapes, weights, biases, layers, borrow_like(pool, h), σ, activation, is_monotone)
end

"""The outcomes of the parts as one."""
function joined(outcomes, parts, pool)
    first_u, n = first(outcomes).u, last(last(parts))
    whole() = borrow(pool, eltype(first_u), size(first_u, 1), n)
    outcome = Outcome(whole(), whole(), zeros(Int, n), fill(false, n))
    for (part, own) in zip(parts, outcomes)
        outcome.u[:, part], outcome.fu[:, part] = own.u, own.fu
        outcome.n_evals[part], outcome.converged[part] = own.n_evals, own.converged
    end
    return outcome
end
