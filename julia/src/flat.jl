# A list of arrays as one vector, and back.
#
# Everything that SciML's solvers see is a flat vector, the weights as well as the state. Its type
# then says nothing about the model's architecture, so that one compilation (and the one kept by
# the precompile workload) serves every width, every number of layers and every batch.

"""
    glue(arrays) -> Vector

Return the entries of all arrays, one array after another.
"""
function glue(arrays::AbstractVector)
    flat = similar(first(arrays), sum(length, arrays))
    at = 0
    for array in arrays
        flat[(at + 1):(at + length(array))] .= vec(array)
        at += length(array)
    end
    return flat
end

"""
    cut(flat, shapes) -> Vector{Any}

Return the arrays of those shapes that lie one after another in the vector `flat`, as views of it.
"""
function cut(flat::AbstractVector, shapes::AbstractVector)
    arrays = Any[]
    at = 0
    for shape in shapes
        n = prod(shape)
        push!(arrays, reshape(view(flat, (at + 1):(at + n)), shape))
        at += n
    end
    return arrays
end

# Each is the adjoint of the other. Without these rules Zygote would make a vector as long as `flat`
# for every array that is cut from it.

function ChainRulesCore.rrule(::typeof(glue), arrays::AbstractVector)
    shapes = [size(array) for array in arrays]
    glue_pullback(cotangent) = (NoTangent(), cut(unthunk(cotangent), shapes))
    return glue(arrays), glue_pullback
end

function ChainRulesCore.rrule(::typeof(cut), flat::AbstractVector, shapes::AbstractVector)
    function cut_pullback(cotangents)
        gradient = fill!(similar(flat), 0)
        at = 0
        for (cotangent, shape) in zip(unthunk(cotangents), shapes)
            n = prod(shape)
            if !(cotangent isa Union{Nothing, AbstractZero})
                gradient[(at + 1):(at + n)] .= vec(unthunk(cotangent))
            end
            at += n
        end
        return NoTangent(), gradient, NoTangent()
    end
    return cut(flat, shapes), cut_pullback
end
