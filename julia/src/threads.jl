# Samples in parts, which Julia's threads take by turns.

"""
Samples that are searched at once in a prediction. So many are as quick as more: the states of a part stay
in a core's cache. The parts do not depend on the number of threads, and so the answers do not.
"""
const PART = 256

"""
    by_parts(work!, parts, pools)

Call `work!(part, pool)` for each of the parts, on as many threads as there are pools: each takes the next
part when it is done with one. What they write must be apart.

BLAS has one thread meanwhile, of each that calls it: with more, they would wait for each other.
"""
function by_parts(work!::F, parts::AbstractVector, pools::AbstractVector) where {F}
    n_tasks = min(length(parts), length(pools))
    if n_tasks <= 1
        foreach(part -> work!(part, first(pools)), parts)
        return nothing
    end
    n_taken = Threads.Atomic{Int}(0)
    failures = with_one_blas_thread() do
        tasks = [Threads.@spawn(take_parts(work!, parts, pool, n_taken)) for pool in pools[1:n_tasks]]
        filter!(!isnothing, fetch.(tasks))
    end
    isempty(failures) || throw(first(failures))
    return nothing
end

"""Work on parts until none is left. Return what was thrown: then there is no other part for anybody."""
function take_parts(work!, parts, pool, n_taken)
    try
        while (i = Threads.atomic_add!(n_taken, 1) + 1) <= length(parts)
            work!(parts[i], pool)
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

"""The pools of a session's predictions: one for each thread that may work."""
function pools_for(model::Model, theta)
    networks = filter(part -> part isa AbstractNetwork, [model.encoder, model.cell, model.decoder, model.init])
    several = is_on_host(theta) && all(allows_threads, networks)
    return [pool_like(theta) for _ in 1:(several ? Threads.nthreads() : 1)]
end

"""The parts of so many samples: one on a GPU, which computes all of them in the time of a few."""
parts_of(n::Int, ::AbstractPool) = [1:n]
parts_of(n::Int, ::Pool) = [first:min(first + PART - 1, n) for first in 1:PART:n]

"""The columns of a part, as a matrix of the pool's."""
part_of(x::AbstractMatrix, part, pool) = length(part) == size(x, 2) ? x : borrow_copy(pool, view(x, :, part))
