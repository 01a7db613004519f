# Installs the agent of this folder as a Windows service. In a PowerShell of an administrator, Windows 10 or newer:
#   .\install.ps1 -Hub hub.example.com:8444 -Token chub1....      (without -Token it asks, so that no history has it)
# Again with another release updates it; `-Remove` removes the service and the program, and leaves the data directory.
[CmdletBinding()]
param([string]$Hub, [string]$Token, [string]$Name, [switch]$Remove)
$ErrorActionPreference = 'Stop'
$target = Join-Path $env:ProgramFiles 'edgelite'
$data = Join-Path $env:ProgramData 'edgelite'
$edgelite = Join-Path $target 'edgelite.cmd'

$me = [Security.Principal.WindowsPrincipal][Security.Principal.WindowsIdentity]::GetCurrent()
if (-not $me.IsInRole([Security.Principal.WindowsBuiltInRole]::Administrator)) { throw 'run this as an administrator' }

if (Test-Path $edgelite) {
    & $edgelite service remove
    if ($LASTEXITCODE -ne 0) { throw 'the service cannot be removed' }
}
if ($Remove) {
    if (Test-Path $target) { Remove-Item -Recurse -Force $target }
    return
}
New-Item -ItemType Directory -Force $target, $data | Out-Null
# The key of this node lies there: for SYSTEM and administrators alone.
& icacls.exe $data /inheritance:r /grant:r '*S-1-5-18:(OI)(CI)F' '*S-1-5-32-544:(OI)(CI)F' | Out-Null
if ($LASTEXITCODE -ne 0) { throw "cannot close $data to others" }
Copy-Item -Recurse -Force (Join-Path $PSScriptRoot '*') $target

if (-not (Test-Path (Join-Path $data 'node.json'))) {
    if (-not $Hub) { throw 'it has not joined yet: give -Hub HOST:PORT' }
    if (-not $Token) {
        $secret = Read-Host -AsSecureString 'join token'
        $Token = [Runtime.InteropServices.Marshal]::PtrToStringAuto([Runtime.InteropServices.Marshal]::SecureStringToBSTR($secret))
    }
    $join = @('join', '--no-run', '--hub', $Hub, '--token', '-', '--data-dir', $data)
    if ($Name) { $join += @('--name', $Name) }
    $Token | & $edgelite @join
    if ($LASTEXITCODE -ne 0) { throw 'it could not join' }
}
& $edgelite service install --data-dir $data
if ($LASTEXITCODE -ne 0) { throw 'the service could not be installed' }
