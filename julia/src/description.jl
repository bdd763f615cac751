# Layers from Python's descriptions of them.

"""
    described_layer(kind, name, given, gives; options...) -> Layer

Return the layer that `pydeq.layers` calls `kind` and whose parameters' names begin with `name`. The
shapes `given` and `gives` of a sample are Julia's, Python's turned round; the options are the fields
of Python's description.
"""
function described_layer(
        kind::AbstractString, name::AbstractString, given, gives; kernel_size = 1, stride = 1,
        padding = "zero", activation = "identity", groups = 1, epsilon = 1.0e-5, size = 1,
        layers = Layer[],
    )
    name, given, gives = String(name), Tuple(given), Tuple(gives)
    kind == "Dense" && return DenseLayer(name, only(given), only(gives))
    if kind == "Conv"
        kernel = (kernel_size, kernel_size, given[3], gives[3])
        return ConvLayer(name, kernel, stride, padding == "circular", given[1:2])
    end
    if kind == "Activation"
        check_choice("activation", Symbol(activation), keys(ACTIVATIONS))
        return ActivationLayer(Symbol(activation))
    end
    kind == "GroupNorm" && return GroupNormLayer(name, groups, epsilon, given)
    kind in ("MaxPool", "MeanPool") && return PoolLayer(kind == "MeanPool", size, given, gives)
    kind == "Flatten" && return FlattenLayer(given)
    kind == "Residual" && return ResidualLayer(name, Vector{Layer}(layers))
    throw(ArgumentError("The Julia engine has no layer called $kind."))
end

"""The network of such layers."""
described_network(layers, given, gives) =
    LayeredNetwork(Vector{Layer}(layers), Tuple(given), Tuple(gives))

"""Layers work on the host alone."""
function check_place(model::Model, place::Device)
    is_layered = any(part -> part isa LayeredNetwork, (model.encoder, model.cell, model.decoder))
    is_layered && !(place isa CPUDevice) || return nothing
    throw(
        ArgumentError(
            "On a GPU the Julia engine does not have layers. Use device=\"cpu\", or engine=\"jax\".",
        ),
    )
end
