using Aqua: Aqua
using ExplicitImports: ExplicitImports
using JET: JET

@testset "Aqua" begin
    Aqua.test_all(PyDEQ)
end

@testset "ExplicitImports" begin
    @test ExplicitImports.check_no_implicit_imports(PyDEQ) === nothing
    @test ExplicitImports.check_no_stale_explicit_imports(PyDEQ) === nothing
    @test ExplicitImports.check_all_qualified_accesses_via_owners(PyDEQ) === nothing
    # These are taken from the packages that their documentation names, which re-export them.
    reexported = (:Tsit5, :NewtonRaphson, :ZygoteVJP, :solve, :AbstractLuxLayer)
    @test ExplicitImports.check_all_explicit_imports_via_owners(PyDEQ; ignore = reexported) ===
        nothing
end

@testset "JET" begin
    JET.test_package(PyDEQ; target_modules = (PyDEQ,))
end
