# Layers at several resolutions: images that stand in one row of values, (size, n).

"""The images of these shapes that stand in rows."""
function apart(pool, images::Vector{Dims}, rows)
    ends = cumsum(prod.(images))
    return [
        inner_order(pool, rows[(stop - prod(image) + 1):stop, :], image) for (image, stop) in zip(images, ends)
    ]
end

function in_rows(pool, images::Vector{Dims}, arrays)
    rows, at = borrow_samples(pool, eltype(first(arrays)), sum(prod, images), n_samples(first(arrays))), 0
    for (image, a) in zip(images, arrays)
        own = borrow_samples(pool, eltype(a), prod(image), n_samples(a))
        rows[(at + 1):(at + prod(image)), :] = outer_order!(pool, own, a, image)
        at += prod(image)
    end
    return rows
end

"""The parameters of each of the lists of layers."""
function of_each(lists, ps)
    ends = cumsum([sum(length ∘ shapes, layers; init = 0) for layers in lists])
    starts = [1; ends[1:(end - 1)] .+ 1]
    return [ps[start:stop] for (start, stop) in zip(starts, ends)]
end

"""Each image through layers of its own; or one image through all of them."""
struct BranchesLayer <: NestedLayer
    given::Vector{Dims}  # empty: all are given the same
    gives::Vector{Dims}
    branches::Vector{Vector{Layer}}
end

shapes(layer::BranchesLayer) = reduce(vcat, shapes.(reduce(vcat, layer.branches)); init = Dims[])
parameter_names(layer::BranchesLayer) =
    reduce(vcat, parameter_names.(reduce(vcat, layer.branches)); init = String[])

function forward(layer::BranchesLayer, pool, ps, a)
    given = isempty(layer.given) ? fill(a, length(layer.branches)) : apart(pool, layer.given, a)
    memories, made = Any[], Any[]
    for (own, own_ps, image) in zip(layer.branches, of_each(layer.branches, ps), given)
        value, memory = forward_all(own, pool, own_ps, image)
        push!(made, value)
        push!(memories, memory)
    end
    total = in_rows(pool, layer.gives, made)
    return total, push!(memories, Any[total])  # for the gradient in what it is multiplied by
end

together_again(layer::BranchesLayer, pool, rows) =
    isempty(layer.given) ? reduce((a, b) -> elementwise(+, pool, a, b), rows) : in_rows(pool, layer.given, rows)

"""Each branch's layers, parameters, memories and row, for the functions that pull."""
function each_branch(layer::BranchesLayer, pool, ps, memories, row)
    rows = apart(pool, layer.gives, row)
    return [
        (own, pool, own_ps, memory, own_row) for (own, own_ps, memory, own_row) in
            zip(layer.branches, of_each(layer.branches, ps), memories, rows)
    ]
end

pull(layer::BranchesLayer, pool, ps, memories, row) =
    together_again(layer, pool, [pull_all(own...) for own in each_branch(layer, pool, ps, memories, row)])

function pull_with_gradients(layer::BranchesLayer, pool, ps, memories, row)
    pulled = [pull_all_with_gradients(own...) for own in each_branch(layer, pool, ps, memories, row)]
    return together_again(layer, pool, first.(pulled)), reduce(vcat, last.(pulled); init = Any[])
end

"""What image `target` gets from image `source`: of a coarser one each pixel `step` times, both ways."""
struct Path
    target::Int
    source::Int
    step::Int
    layer::Layer
end

"""Each image plus what the others give it, through a convolution each."""
struct FuseLayer <: NestedLayer
    images::Vector{Dims}
    paths::Vector{Path}
end

layers_of(layer::FuseLayer) = Layer[path.layer for path in layer.paths]
shapes(layer::FuseLayer) = reduce(vcat, shapes.(layers_of(layer)); init = Dims[])
parameter_names(layer::FuseLayer) = reduce(vcat, parameter_names.(layers_of(layer)); init = String[])

is_refined(path::Path) = path.target < path.source

"""Each pixel `step` times in width and height, as far as the image goes."""
function repeated(a, step, (width, height))
    at(size) = ((1:size) .- 1) .÷ step .+ 1
    return a[:, at(width), at(height), :]
end

"""The transposed map."""
function gathered(row, step, (width, height))
    channels, w, h, n = size(row)
    whole = fill!(similar(row, channels, width * step, height * step, n), 0)
    whole[:, 1:w, 1:h, :] = row
    squares_of = reshape(whole, channels, step, width, step, height, n)
    return reshape(sum(squares_of; dims = (2, 4)), channels, width, height, n)
end

function forward(layer::FuseLayer, pool, ps, a)
    given = apart(pool, layer.images, a)
    total, memories = Any[given...], Any[]
    for (path, own) in zip(layer.paths, each_with_parameters(layers_of(layer), ps))
        made, memory = forward(path.layer, pool, own, given[path.source])
        push!(memories, memory)
        is_refined(path) && (made = repeated(made, path.step, layer.images[path.target]))
        total[path.target] = elementwise(+, pool, total[path.target], made)
    end
    all_of = in_rows(pool, layer.images, total)
    return all_of, push!(memories, Any[all_of])
end

"""The rows that a path's layer is pulled with."""
function row_of(layer::FuseLayer, path::Path, rows)
    row = rows[path.target]
    return is_refined(path) ? gathered(row, path.step, layer.images[path.source]) : row
end

pull(layer::FuseLayer, args...) = pull_paths(layer, (own...) -> (pull(own...), ()), args...)[1]
pull_with_gradients(layer::FuseLayer, args...) = pull_paths(layer, pull_with_gradients, args...)

function pull_paths(layer::FuseLayer, pull_one, pool, ps, memories, row)
    rows = apart(pool, layer.images, row)
    into, found = Any[rows...], Any[]
    for (path, own, memory) in zip(layer.paths, each_with_parameters(layers_of(layer), ps), memories)
        pulled, gradients_of = pull_one(path.layer, pool, own, memory, row_of(layer, path, rows))
        into[path.source] = elementwise(+, pool, into[path.source], pulled)
        append!(found, gradients_of)
    end
    return in_rows(pool, layer.images, into), found
end

function bound_with_slopes(layer::BranchesLayer, ps)
    each = [bounds_with_slopes(own...) for own in zip(layer.branches, of_each(layer.branches, ps))]
    logs = [sum(first(own); init = false) for own in each]
    total = isempty(layer.given) ? maximum(logs) + log(sum(abs2, exp.(logs .- maximum(logs)))) / 2 :
        maximum(logs)
    shares = isempty(layer.given) ? exp.(2 .* (logs .- total)) : (1:length(logs)) .== argmax(logs)
    return total, times_shares(shares, [reduce(vcat, last(own); init = Any[]) for own in each])
end

function bound_with_slopes(layer::FuseLayer, ps)
    logs, slopes = bounds_with_slopes(layers_of(layer), ps)
    top = max(zero(eltype(logs)), maximum(logs))
    matrix = Matrix(exp(-top) * I, length(layer.images), length(layer.images))
    factors = [(is_refined(path) ? path.step : 1) * exp(log - top) for (path, log) in zip(layer.paths, logs)]
    for (path, factor) in zip(layer.paths, factors)
        matrix[path.target, path.source] += factor
    end
    log_bound, powers = gram_iteration(matrix)
    slope = norm_slope(matrix, powers)
    shares = [slope[path.target, path.source] * factor for (path, factor) in zip(layer.paths, factors)]
    return log_bound + top, times_shares(shares, slopes)
end

"""The slopes in the parameters of parts, each times what its part's bound counts."""
function times_shares(shares, slopes)
    parts = map(shares, slopes) do share, own
        Any[slope === nothing ? nothing : share .* slope for slope in own]
    end
    return reduce(vcat, parts; init = Any[])
end
