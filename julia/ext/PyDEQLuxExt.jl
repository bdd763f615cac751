# What is known of a cell that is a chain of Lux's `Dense` layers.
module PyDEQLuxExt

using Lux: Chain, Dense
using LuxCore: LuxCore
using PyDEQ: Network, PyDEQ, activation_name

function PyDEQ.dense_network(chain::Chain)
    layers = values(chain.layers)
    all(layer -> layer isa Dense && LuxCore.parameterlength(layer) > layer.in_dims * layer.out_dims, layers) ||
        return nothing
    names = map(layer -> activation_name(layer.activation), layers)
    hidden = unique(names[1:(end - 1)])
    is_known = last(names) === :identity && length(hidden) <= 1 && !(nothing in hidden)
    is_known || return nothing
    widths = [first(layers).in_dims; map(layer -> layer.out_dims, collect(layers))]
    return Network(Vector{Int}(widths), isempty(hidden) ? :identity : only(hidden))
end

PyDEQ.flat_parameters(::Chain, ps) =
    reduce(vcat, [vcat(vec(layer.weight), vec(layer.bias)) for layer in values(ps)])

end
