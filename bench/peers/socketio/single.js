// One process, without cluster and Redis.
//
//     node single.js PORT
//
import { serve } from "./chat.js";

serve(process.argv[2]).on("listening", () => console.log("ready"));
