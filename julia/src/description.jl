# Layers from Python's descriptions of them.

"""
    described_layer(kind, name, given, gives, names, values) -> Layer

Return the layer that `pydeq.layers` calls `kind` and whose parameters' names begin with `name`. The
shapes `given` and `gives` of a sample are Julia's, Python's turned round; `names` and `values` are the
fields of Python's description.
"""
function described_layer(
        kind::String, name::String, given::Vector{Int}, gives::Vector{Int}, names::Vector{String},
        values::Vector{Any},
    )
    return described_layer(kind, name, Tuple(given), Tuple(gives), Dict{String, Any}(zip(names, values)))
end

function described_layer(kind::String, name::String, given::Dims, gives::Dims, options::Dict{String, Any})
    number(key) = options[key]::Int
    kind == "Dense" && return DenseLayer(name, only(given), only(gives))
    if kind == "Conv"
        k = number("kernel_size")
        kernel = (k, k, given[3], gives[3])
        return ConvLayer(name, kernel, number("stride"), options["padding"] == "circular", given[1:2])
    end
    if kind == "Activation"
        activation = Symbol(options["activation"]::String)
        check_choice("activation", activation, keys(ACTIVATIONS))
        return ActivationLayer(activation)
    end
    kind == "GroupNorm" &&
        return GroupNormLayer(name, number("groups"), options["epsilon"]::Float64, given)
    kind in ("MaxPool", "MeanPool") && return PoolLayer(kind == "MeanPool", number("size"), given, gives)
    kind == "Flatten" && return FlattenLayer(given)
    kind == "Residual" && return ResidualLayer(name, Vector{Layer}(options["layers"]))
    shapes_of(key) = Dims[Tuple(shape) for shape in options[key]]
    if kind == "Branches"
        branches = Vector{Layer}[Vector{Layer}(own) for own in options["branches"]]
        return BranchesLayer(shapes_of("images"), shapes_of("made"), branches)
    elseif kind == "Fuse"
        paths = [Path(target + 1, source + 1, step, own) for (target, source, step, own) in options["paths"]]
        return FuseLayer(shapes_of("images"), paths)
    end
    throw(ArgumentError("The Julia engine has no layer called $kind."))
end

"""The network of such layers."""
described_network(layers::Vector, given, gives) =
    LayeredNetwork(Vector{Layer}(layers), Tuple(given), Tuple(gives))
