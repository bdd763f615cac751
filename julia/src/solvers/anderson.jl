# Anderson acceleration with a safeguard, for a batch in place.

"""Differences that are kept: on trained cells more gained little, and each costs two passes."""
const ANDERSON_WINDOW = 3

"""
    Anderson(u, fu, pool)

Anderson acceleration, type II of Walker and Ni 2011, section 2, over the last `ANDERSON_WINDOW`
steps.

The changes of g = f(u) - u are made orthonormal as they come (as in the truncated GCR of He, Tang
and Saad 2024), so that the least squares over them are products alone.

A step that would make ``||f(u) - u||_2`` larger, or not finite, is not taken: the sample goes back
to plain iteration, u <- f(u), and gathers its window anew. Where f contracts, each plain step makes
the residual smaller by that factor, so the search ends whatever the window does.
"""
mutable struct Anderson{T} <: SearchMethod
    const df::Array{T, 3}    # (width, window, B): changes of f(u), combined as their dg are
    const dg::Array{T, 3}    # (width, window, B): changes of g, orthonormal
    const along::Matrix{T}   # (window, B): products of the dg with g; 0 where one is not used
    const size::Vector{T}    # (B,): the square of ||g||
    const u::Matrix{T}       # (width, B): what is tried
    const fu::Matrix{T}
    const g::Vector{T}       # (width,), for a moment
    n_steps::Int
end

function Anderson(u::Matrix{T}, fu::Matrix{T}, pool) where {T}
    (n, k), m = size(u), ANDERSON_WINDOW
    sizes = T[squared_distance(view(fu, :, j), view(u, :, j)) for j in 1:k]
    return Anderson{T}(
        borrow(pool, T, n, m, k), borrow(pool, T, n, m, k), zeros(T, m, k), sizes,
        borrow_like(pool, u), borrow_like(pool, u), zeros(T, n), 0,
    )
end

function move!(method::Anderson, from::Int, to::Int)
    foreach(a -> move_column!(a, from, to), (method.df, method.dg, method.along, method.size))
    return nothing
end

function step!(method::Anderson, cell, s::Search)
    k = s.k
    for j in 1:k
        new_u = view(method.u, :, j)
        copyto!(new_u, view(s.fu, :, j))
        for i in 1:ANDERSON_WINDOW
            subtract!(new_u, method.along[i, j], view(method.df, :, i, j))
        end
    end
    evaluate!(front(method.fu, k), cell, front(method.u, k), front(s.h, k))
    method.n_steps += 1
    for j in 1:k
        s.n_evals[j] += 1
        judge!(method, s, mod1(method.n_steps, ANDERSON_WINDOW), j)
    end
    return nothing
end

"""Take the state that was tried where it is better or a plain step; else forget the window."""
function judge!(method::Anderson{T}, s, slot, j) where {T}
    (; along, g) = method
    new_u, new_fu = view(method.u, :, j), view(method.fu, :, j)
    u, fu = view(s.u, :, j), view(s.fu, :, j)
    size_of_g = squared_distance(new_fu, new_u)
    is_plain = all(i -> iszero(along[i, j]), 1:ANDERSON_WINDOW)
    # (Not "larger than": a comparison with nan is false.)
    if !(size_of_g <= method.size[j]) && !is_plain
        along[:, j] .= 0
        return nothing
    end
    g .= new_fu .- new_u
    # The changes, in the place of what is not needed any more.
    dg, df = new_u, new_fu
    @inbounds @simd for i in eachindex(g)
        a, fa = u[i], fu[i]
        u[i], fu[i] = new_u[i], new_fu[i]
        dg[i], df[i] = g[i] - (fa - a), new_fu[i] - fa
    end
    for i in 1:ANDERSON_WINDOW
        iszero(along[i, j]) && continue
        before, along[i, j] = along[i, j], dot_of(view(method.dg, :, i, j), g)
        # dg is the change of g, so its products with the others are the change of theirs with g.
        overlap = iszero(along[i, j]) ? zero(T) : along[i, j] - before
        subtract!(dg, overlap, view(method.dg, :, i, j))
        subtract!(df, overlap, view(method.df, :, i, j))
    end
    left = dot_of(dg, dg)
    along[slot, j] = 0
    if left > (10 * eps(T))^2 * method.size[j]  # less than this is the rounding of g
        scale = inv(sqrt(left))
        view(method.dg, :, slot, j) .= scale .* dg
        view(method.df, :, slot, j) .= scale .* df
        along[slot, j] = dot_of(view(method.dg, :, slot, j), g)
    end
    method.size[j] = size_of_g
    return nothing
end
