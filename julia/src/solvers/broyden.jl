# Broyden's method with a safeguard, for a batch in place.

"""Updates of the inverse Jacobian that are kept; then it begins anew."""
const BROYDEN_RANK = 12

"""
    Broyden(u, pool)

Broyden's first method on g(u) = f(u) - u, as Bai et al. 2019 (section 3.1.3) use it.

The inverse Jacobian starts as -I, whose step is the plain u <- f(u), and gains a rank-one update a
step (Sherman and Morrison). A step that would make ``||g||_2`` larger, or not finite, is not taken:
the sample begins anew with a plain step, which is taken as it is.
"""
mutable struct Broyden{T} <: SearchMethod
    const left::Array{T, 3}   # (width, rank, B)
    const right::Array{T, 3}  # the inverse is -I + sum_i left_i right_i^T
    const n_updates::Vector{Int}
    const u::Matrix{T}        # (width, B): what is tried
    const fu::Matrix{T}
    const work::Vector{T}     # (width,)
    n_steps::Int
end

function Broyden(u::Matrix{T}, pool) where {T}
    n, k = size(u)
    left, right = borrow(pool, T, n, BROYDEN_RANK, k), borrow(pool, T, n, BROYDEN_RANK, k)
    tried = borrow_like(pool, u), borrow_like(pool, u)
    return Broyden{T}(left, right, zeros(Int, k), tried..., zeros(T, n), 0)
end

function move!(method::Broyden, from::Int, to::Int)
    foreach(a -> move_column!(a, from, to), (method.left, method.right, method.n_updates))
    return nothing
end

function step!(method::Broyden, cell, s::Search)
    k = s.k
    for j in 1:k
        g, new_u = method.work, view(method.u, :, j)
        u, fu = view(s.u, :, j), view(s.fu, :, j)
        @. g = fu - u
        inverse!(new_u, method.left, method.right, method.n_updates[j], j, g)
        @. new_u = u - new_u
    end
    evaluate!(front(method.fu, k), cell, front(method.u, k), front(s.h, k))
    fresh = method.n_steps % BROYDEN_RANK == 0
    method.n_steps += 1
    for j in 1:k
        s.n_evals[j] += 1
        judge!(method, s, fresh, j)
    end
    return nothing
end

"""Write the inverse Jacobian of column `j` times `v`; with left and right exchanged, its transpose."""
function inverse!(out, left, right, n_updates, j, v)
    @. out = -v
    for i in 1:n_updates
        out .+= dot_of(view(right, :, i, j), v) .* view(left, :, i, j)
    end
    return out
end

"""Take the step that was tried and learn from it, or forget all."""
function judge!(method::Broyden, s, fresh, j)
    u, fu, new_u, new_fu = view(s.u, :, j), view(s.fu, :, j), view(method.u, :, j), view(method.fu, :, j)
    (; left, right, n_updates) = method
    is_plain = n_updates[j] == 0
    if !is_plain && !(squared_distance(new_fu, new_u) <= squared_distance(fu, u))
        n_updates[j] = 0
        return nothing
    end
    fresh && (n_updates[j] = 0)
    du, dg = new_u .- u, (new_fu .- new_u) .- (fu .- u)
    slot = n_updates[j] + 1
    direction, gain = view(right, :, slot, j), view(left, :, slot, j)
    inverse!(direction, right, left, slot - 1, j, du)
    inverse!(gain, left, right, slot - 1, j, dg)
    size_of = dot_of(direction, dg)
    @. gain = (du - gain) / size_of
    size_of != 0 && all(isfinite, gain) && (n_updates[j] = slot)
    copyto!(u, new_u)
    copyto!(fu, new_fu)
    return nothing
end
