// What this CPU can do, and what the system lets this process use of it.
#pragma once

namespace native {

bool cpu_has_avx2();     // with FMA and half floats
bool cpu_has_avx512();   // with VNNI
bool cpu_has_amx();      // asks the system for the tiles
bool cpu_has_dotprod();  // NEON's sdot

}  // namespace native
