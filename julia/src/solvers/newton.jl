# Newton's method with a Krylov method inside, for a batch in place.

"""How exactly, relative to f(u) - u, Newton's linear systems are solved."""
const FORCING = 0.1

"""Most times that a Newton step is halved."""
const HALVINGS = 6

"""
    Newton(u)

Newton-Krylov: ``(I - df/du) step = f(u) - u`` by [`solve_linear!`](@ref), halved until the residual falls.
"""
struct Newton{T} <: SearchMethod
    step::Matrix{T}  # (width, B)
    g::Matrix{T}
    u::Matrix{T}
    fu::Matrix{T}
    h::Matrix{T}
    scale::Vector{T}
    n_products::Vector{Int}
end

function Newton(u::Matrix{T}) where {T}
    k = size(u, 2)
    return Newton{T}((similar(u) for _ in 1:5)..., zeros(T, k), zeros(Int, k))
end

move!(::Newton, ::Int, ::Int) = nothing  # it remembers nothing

function step!(method::Newton{T}, cell, s::Search) where {T}
    k = s.k
    u, fu, h = front(s.u, k), front(s.fu, k), front(s.h, k)
    g, step = front(method.g, k), front(method.step, k)
    g .= fu .- u
    n_products = fill!(view(method.n_products, 1:k), 0)
    solve_linear!(step, n_products, linearize(cell, u, h), g, FORCING, false)
    fill!(method.scale, 1)
    todo = collect(1:k)
    size_of_g = [squared_distance(view(fu, :, j), view(u, :, j)) for j in 1:k]
    for halvings in 0:HALVINGS
        isempty(todo) && break
        try_steps!(method, cell, s, todo)
        # (Not "larger": a comparison with nan is false.) The last one is taken as it is.
        smaller(i, j) = squared_distance(view(method.fu, :, i), view(method.u, :, i)) < size_of_g[j]
        done = [halvings == HALVINGS || smaller(i, j) for (i, j) in enumerate(todo)]
        for (i, j) in enumerate(todo)
            if done[i]
                u[:, j] .= view(method.u, :, i)
                fu[:, j] .= view(method.fu, :, i)
            end
        end
        todo = todo[.!done]
        method.scale[todo] ./= 2
    end
    view(s.n_evals, 1:k) .+= n_products
    return nothing
end

"""Evaluate the cell at the steps of the columns `todo`, as long as their scale says."""
function try_steps!(method::Newton, cell, s, todo)
    for (i, j) in enumerate(todo)
        method.u[:, i] .= view(s.u, :, j) .+ method.scale[j] .* view(method.step, :, j)
        method.h[:, i] .= view(s.h, :, j)
        s.n_evals[j] += 1
    end
    m = length(todo)
    evaluate!(front(method.fu, m), cell, front(method.u, m), front(method.h, m))
    return nothing
end
