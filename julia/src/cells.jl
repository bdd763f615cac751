# Cells that have one equilibrium whatever their weights: as layers for `DeepEquilibrium`.

"""
    contractive(layer; bound = 0.9)

The Lux layer with its weights scaled so that its Lipschitz constant is at most `bound`: each of the
L matrices called `weight` among its parameters is multiplied by
``min(1, (bound / \\prod_i \\sigma_i)^{1/L})``, with ``\\sigma_i`` an upper bound of its spectral norm by
Gram iteration (Delattre et al. 2023). This holds for layers one after another, whose activations are
1-Lipschitz.

# Example

```julia
using Lux, PyDEQ
cell = contractive(Chain(Dense(8 => 16, tanh), Dense(16 => 8)); bound = 0.9)
model = Chain(Dense(3 => 8), DeepEquilibrium(cell), Dense(8 => 2))
```
"""
contractive(layer; bound = 0.9) = Contractive(layer, Float64(bound))

struct Contractive{L} <: AbstractLuxWrapperLayer{:layer}
    layer::L
    bound::Float64
end

(cell::Contractive)(x, ps, st) = cell.layer(x, contract(ps, cell.bound), st)

"""The parameters with their weights scaled."""
function contract(ps, bound)
    n_layers = @ignore_derivatives count_weights(ps)
    return scale_weights(ps, contraction_scale(total_log_norm(ps), n_layers, bound))
end

"""The sum of the weights' [`log_norm_bound`](@ref)."""
function total_log_norm(ps::NamedTuple)
    haskey(ps, :weight) && return log_norm_bound(ps.weight)
    return isempty(ps) ? false : sum(map(total_log_norm, values(ps)))
end
total_log_norm(_) = false

count_weights(ps::NamedTuple) = haskey(ps, :weight) ? 1 : sum(count_weights, values(ps); init = 0)
count_weights(_) = 0

function scale_weights(ps::NamedTuple, scale)
    haskey(ps, :weight) && return merge(ps, (; weight = scale .* ps.weight))
    return NamedTuple{keys(ps)}(map(part -> scale_weights(part, scale), values(ps)))
end
scale_weights(part, _) = part

dense_network(cell::Contractive) = dense_network(cell.layer)
flat_parameters(cell::Contractive, ps) = flat_parameters(cell.layer, contract(ps, cell.bound))

"""
    MonotoneCell(width, activation = relu)

The cell of Winston and Kolter 2020 (equation 1, proposition 1 with m = 1): one layer that has the
input beside the weight, f(u, h) = activation(W u + h + bias), with ``W = B - B^T - A^T A`` of its
parameters `weight` (A) and `skew` (B). Its equilibrium exists and is unique, whatever they are.
[`Batched`](@ref)`(:peaceman_rachford)` is the solver made for it.

The activation is `identity`, `relu`, `tanh` or `sigmoid`.

# Example

```julia
using Lux, PyDEQ
model = Chain(
    Dense(3 => 8), DeepEquilibrium(MonotoneCell(8, tanh), Batched(:peaceman_rachford)), Dense(8 => 2)
)
```
"""
struct MonotoneCell{F} <: AbstractLuxLayer
    width::Int
    activation::F
    name::Symbol
end

function MonotoneCell(width::Integer, activation = relu)
    name = activation_name(activation)
    name === nothing && throw(
        ArgumentError("MonotoneCell takes identity, relu, tanh or sigmoid; found $activation.")
    )
    return MonotoneCell(Int(width), ACTIVATIONS[name], name)
end

function LuxCore.initialparameters(rng::AbstractRNG, cell::MonotoneCell)
    n = cell.width
    glorot() = sqrt(3.0f0 / n) .* (2 .* rand(rng, Float32, n, n) .- 1)
    return (weight = glorot(), skew = glorot(), bias = zeros(Float32, n))
end

(cell::MonotoneCell)((u, h)::Tuple, ps, st) =
    cell.activation.(monotone_weight(ps.weight, ps.skew) * u .+ h .+ ps.bias), st

monotone_weight(a, b) = b .- b' .- a' * a

inject(cell::MonotoneCell, u, h, ps, st) = first(cell((u, h), ps, st))

dense_network(cell::MonotoneCell) = Network([cell.width, cell.width], cell.name; is_monotone = true)
flat_parameters(::MonotoneCell, ps) = vcat(vec(monotone_weight(ps.weight, ps.skew)), vec(ps.bias))
