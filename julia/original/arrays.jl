# Named arrays in a file, in a form that both Julia and numpy read in a few lines:
#
#     pydeq arrays 1
#     <name> <dtype> <dimensions, as numpy has them, separated by blanks>      one line an array
#     ...
#     end
#
# and then the arrays' bytes one after another, little-endian and in C order, nothing in between.
# The dtype is f4, f8 or i8; a number has no dimensions. Lines end in "\n". Julia's first dimension
# is the fastest, so an array that numpy calls (n, n_features) is (n_features, n) here.

const DTYPES = Dict("f4" => Float32, "f8" => Float64, "i8" => Int64)

function read_arrays(path)
    return open(path) do io
        readline(io) == "pydeq arrays 1" || error("$path: not a file of pydeq's arrays")
        heads = Tuple{String, DataType, Vector{Int}}[]
        while (line = readline(io)) != "end"
            isempty(line) && error("$path: the header has no end")
            name, dtype, dims... = split(line)
            push!(heads, (name, DTYPES[dtype], reverse(parse.(Int, dims))))
        end
        arrays = Dict{String, Array}()
        for (name, T, dims) in heads
            arrays[name] = map(ltoh, read!(io, Array{T}(undef, dims...)))
        end
        arrays
    end
end

function write_arrays(path, arrays)
    return open(path, "w") do io
        println(io, "pydeq arrays 1")
        for (name, array) in arrays
            dtype = only(d for (d, T) in DTYPES if T == eltype(array))
            println(io, join([name; dtype; string.(reverse(size(array)))...], " "))
        end
        println(io, "end")
        for (_, array) in arrays
            write(io, map(htol, array))
        end
    end
end
