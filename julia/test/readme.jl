# The programs of README.md, and the examples in the docstrings of what is exported.

"""Return the Julia code between fences."""
code_blocks(text) = [String(m.captures[1]) for m in eachmatch(r"```julia\n(.*?)```"s, text)]

"""Run code in a module of its own, which is returned."""
function run_alone(code; with...)
    place = Module(gensym(:example))
    foreach(((name, value),) -> Core.eval(place, :($name = $value)), pairs(values(with)))
    Base.include_string(place, code)
    return place
end

const README = code_blocks(read(joinpath(@__DIR__, "..", "README.md"), String))

@testset "the README's y = 2x" begin
    place = run_alone(README[1])
    @test length(README) == 2
    # At the post's tolerance, 1e-2 of the largest state, 20, a state may be off by 0.2 / (1 - 2/3).
    @test abs(only(place.prediction) + 10) < 0.7
end

@testset "the README's MNIST" begin
    rng = Xoshiro(0)
    kinds = randn(rng, Float32, 784, 10)
    labels = rand(rng, 1:10, 1000)
    x = kinds[:, labels] ./ 4 .+ 0.1f0 .* randn(rng, Float32, 784, 1000)
    # The first block defines what both use.
    head = first(split(README[1], "model ="))
    fit = match(r"function fit.*?\nend\n"s, README[1]).match
    place = run_alone(head * fit * README[2]; x, y = Float32.(labels' .== 1:10))
    right = count(argmax(place.logits[:, j]) == labels[j] for j in eachindex(labels))
    @test right > 900
    @test length(place.st.layer_2.solution.converged) == 1000
end

"""A line that is true, if the example is."""
const COMPARISON = r"^(?=\S)(?!.* = )(.*(?: ≈ | == |^all\().*)$"m

# What is exported, and what trains in a session.
@testset "the example of $name" for name in [filter(!=(:PyDEQ), names(PyDEQ)); :Session]
    documented = Base.Docs.meta(PyDEQ)[Base.Docs.Binding(PyDEQ, name)]
    examples = reduce(vcat, [code_blocks(join(doc.text)) for doc in values(documented.docs)])
    @test !isempty(examples)
    foreach(example -> run_alone(replace(example, COMPARISON => s"(\1) || error(\"it is not\")")), examples)
end
