using Test

include("helpers.jl")

@testset "PyDEQ" begin
    include("quality.jl")
    include("equilibria.jl")
    include("solvers.jl")
    include("methods.jl")
    include("threads.jl")
    include("gradients.jl")
    include("layers.jl")
    include("training.jl")
    include("device.jl")
    include("layer.jl")
    include("readme.jl")
end
